"""SSDLite with MobileNetV3-Small on mini-city's boxes, small enough for a CPU.

Run:     segmv3 data mini-city data/mini-city && segmv3 detect train configs/detect/quickstart.py
Score:   docs/how-to/detect.md
"""

from pathlib import Path

from segmv3.config import AdamW, BoxData, Detection, Detector, MobileNetV3, Schedule

config = Detection(
    model=Detector(
        backbone=MobileNetV3(size="small", tail="torchvision"),
        scales=(0.1, 0.9),  # objects of a street are smaller than COCO's
        bn_momentum=0.1,
    ),
    data=BoxData(root=Path("data/mini-city"), batch_size=16, crop_size=(256, 384)),
    optim=AdamW(lr=3e-3, weight_decay=0.01),
    schedule=Schedule(
        steps=400,
        policy="cosine",
        min_lr=1e-5,
        warmup_steps=50,
        clip_norm=10.0,
        eval_every=200,
        save_every=100,
        log_every=20,
    ),
)

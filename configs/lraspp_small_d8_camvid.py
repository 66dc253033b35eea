"""MobileNetV3-Small with LR-ASPP on CamVid (11 classes, 480x360), from scratch, on two CPU cores.

Run:     python tools/train.py configs/lraspp_small_d8_camvid.py --data.root data/camvid
Net:     467,086 parameters with 11 classes
Recipe:  100 epochs of AdamW at batch 8, crops of the image size, cosine; no ImageNet weights
Cost:    about 36 minutes on two CPU cores
Score:   61.10 % on val single scale, 64.54 % with six scales and flip (one seed; docs/results/camvid.md)
"""

from pathlib import Path

from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_small_d8"],
    data=Data(dataset="camvid", root=Path("data/camvid"), batch_size=8, crop_size=(360, 480), workers=2),
    optim=AdamW(lr=2e-3, weight_decay=0.05),
    schedule=Schedule(steps=4600, policy="cosine", min_lr=1e-5, warmup_steps=200, eval_every=460, save_every=230),
)

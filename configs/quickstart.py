"""MobileNetV3-Small with LR-ASPP on mini-city: what `make quickstart` trains on two CPU cores.

Run:     segmv3 data mini-city data/mini-city && segmv3 train configs/quickstart.py
Net:     468,830 parameters
Score:   docs/measurements.md
"""

from pathlib import Path

from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_small_d8"],
    data=Data(
        dataset="cityscapes", root=Path("data/mini-city"), batch_size=8, crop_size=(256, 384), scale_range=(0.75, 1.5)
    ),
    optim=AdamW(lr=3e-3, weight_decay=0.01),
    schedule=Schedule(
        steps=500, policy="cosine", min_lr=1e-5, warmup_steps=30, eval_every=100, save_every=50, log_every=20
    ),
)

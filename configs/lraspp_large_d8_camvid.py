"""MobileNetV3-Large with LR-ASPP on CamVid (11 classes, 480x360), from scratch.

Run:     python tools/train.py configs/lraspp_large_d8_camvid.py --data.root data/camvid
Net:     1,505,198 parameters with 11 classes
Recipe:  that of lraspp_small_d8_camvid; 3.5 times the arithmetic, so rather for a GPU or a night
Score:   not measured yet
"""

from pathlib import Path

from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_large_d8"],
    data=Data(dataset="camvid", root=Path("data/camvid"), batch_size=8, crop_size=(360, 480), workers=2),
    optim=AdamW(lr=2e-3, weight_decay=0.05),
    schedule=Schedule(steps=4600, policy="cosine", min_lr=1e-5, warmup_steps=200, eval_every=460, save_every=230),
)

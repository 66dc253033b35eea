"""MobileNetV3-Small with LR-ASPP on Cityscapes fine, from scratch.

Run:     python tools/train.py configs/lraspp_small_d8.py --data.root data/cityscapes
         torchrun --nproc-per-node 4 -- tools/train.py configs/lraspp_small_d8.py
Net:     468,830 parameters, 2.67 GMACs at 1024x2048 (paper, table 7 row 11: 68.38 % on val, from scratch)
Recipe:  mmsegmentation's for its M-V3s-D8 scratch row (62.74 %), for all of its 320,000 steps, with a warm-up
         because there are no ImageNet weights to start from
Score:   not measured yet (no Cityscapes at hand)
"""

from pathlib import Path

from segmv3.config import SGD, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_small_d8"],
    data=Data(
        dataset="cityscapes",
        root=Path("data/cityscapes"),
        batch_size=16,
        crop_size=(512, 1024),
        scale_range=(0.5, 2.0),
        cat_max_ratio=0.75,
        workers=4,
    ),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Schedule(
        steps=320_000, policy="poly", power=0.9, min_lr=1e-4, warmup_steps=1000, eval_every=8000, save_every=2000
    ),
    precision="bf16",
)

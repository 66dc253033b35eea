"""mmsegmentation's M-V3-D8 on Cityscapes fine, from scratch: MobileNetV3-Large at output stride 8.

Run:     torchrun --nproc-per-node 4 -- tools/train.py configs/lraspp_large_d8_mmseg_scratch.py
Net:     3,284,547 parameters, 69.0 GMACs at 1024x2048
Recipe:  that of mmsegmentation's table for all of its 320,000 steps (its own configs stop at 160,000)
Score:   not measured yet (no Cityscapes at hand); mmsegmentation: 67.87 %, 69.78 % with six scales and flip
"""

from pathlib import Path

from segmv3.config import SGD, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_large_d8_mmseg"],
    data=Data(dataset="cityscapes", root=Path("data/cityscapes"), batch_size=16, crop_size=(512, 1024), workers=4),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Schedule(steps=320_000, policy="poly", power=0.9, min_lr=1e-4, eval_every=8000, save_every=2000),
)

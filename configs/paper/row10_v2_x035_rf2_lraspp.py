"""MobileNetV2 x0.35 with RF2, LR-ASPP with 128 filters. Cityscapes fine, from scratch.

Run:     python tools/train.py configs/paper/row10_v2_x035_rf2_lraspp.py --data.root data/cityscapes
Net:     166,982 parameters, 2.39 GMACs at 1025x2049 (paper, table 7 row 10: 0.16M, 2.54B)
Recipe:  as configs/lraspp_large_d8.py, the same for all rows of the table, for the paper gives neither steps nor batch
Score:   not measured yet (no Cityscapes at hand); paper: 66.83 % on val, single scale
"""

from pathlib import Path

from segmv3.config import SGD, Config, Data, Schedule
from segmv3.models.zoo import PAPER_NETS

config = Config(
    model=PAPER_NETS["paper_10_v2_x0.35_rf2_lraspp"],
    data=Data(dataset="cityscapes", root=Path("data/cityscapes"), batch_size=16, crop_size=(512, 1024), workers=4),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Schedule(steps=320_000, min_lr=1e-4, warmup_steps=1000, eval_every=8000, save_every=2000),
    precision="bf16",
)

"""MobileNetV2 with RF2, LR-ASPP with 256 filters. Cityscapes fine, from scratch.

Run:     python tools/train.py configs/paper/row03_v2_rf2_lraspp_f256.py --data.root data/cityscapes
Net:     1,027,910 parameters, 12.55 GMACs at 1025x2049 (paper, table 7 row 3: 1.02M, 12.83B)
Recipe:  as configs/lraspp_large_d8.py, the same for all rows of the table, for the paper gives neither steps nor batch
Score:   not measured yet (no Cityscapes at hand); paper: 72.97 % on val, single scale
"""

from pathlib import Path

from segmv3.config import SGD, Config, Data, Schedule
from segmv3.models.zoo import PAPER_NETS

config = Config(
    model=PAPER_NETS["paper_03_v2_rf2_lraspp_f256"],
    data=Data(dataset="cityscapes", root=Path("data/cityscapes"), batch_size=16, crop_size=(512, 1024), workers=4),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Schedule(steps=320_000, min_lr=1e-4, warmup_steps=1000, eval_every=8000, save_every=2000),
    precision="bf16",
)

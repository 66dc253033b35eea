"""MobileNetV3-Small with LR-ASPP on Cityscapes as the paper trained it, as far as that is known.

Run:     segmv3 data pack data/cityscapes data/cityscapes-pack
         segmv3 train configs/recipes/cityscapes_small_paper.py --data.cache data/cityscapes-pack
         or torchrun --nproc-per-node 4 -- tools/train.py configs/recipes/cityscapes_small_paper.py ... on four GPUs
Net:     lraspp_small_d8: 468,830 parameters, 2.67 GMACs at 1024x2048 (paper, table 7 row 11: 68.38 %)
Recipe:  that of cityscapes_paper, so that the difference is the net's
Cost:    on one H200-class GPU: unmeasured (9/32 of the hours that segmv3 benchmark training --size 769 769 says);
         on two CPU cores: out of reach
Score:   not measured (no Cityscapes at hand)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import load_config
from segmv3.models.zoo import NETS

config = replace(load_config(Path(__file__).with_name("cityscapes_paper.py")), model=NETS["lraspp_small_d8"])

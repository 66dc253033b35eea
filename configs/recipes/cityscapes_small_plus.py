"""MobileNetV3-Small with the plus head on Cityscapes, from scratch, by the best recipe.

Run:     segmv3 data pack data/cityscapes data/cityscapes-pack
         segmv3 train configs/recipes/cityscapes_small_plus.py --data.cache data/cityscapes-pack
         or torchrun --nproc-per-node 4 -- tools/train.py configs/recipes/cityscapes_small_plus.py ... on four GPUs
         from ImageNet weights: --model.pretrained torchvision/mobilenet_v3_small --optim.lr 0.01 --optim.head-lr 10
Net:     lraspp_small_plus: 963,379 parameters, 3.07 GMACs at 1024x2048
Recipe:  that of cityscapes_best, so that the difference is the net's
Cost:    on one H200-class GPU: unmeasured (segmv3 benchmark training says the hours of 320,000 steps);
         on two CPU cores: out of reach
Score:   not measured (no Cityscapes at hand)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import load_config
from segmv3.models.zoo import NETS

config = replace(load_config(Path(__file__).with_name("cityscapes_best.py")), model=NETS["lraspp_small_plus"])

"""MobileNetV3-Large with LR-ASPP on Cityscapes, from scratch, with everything that helped others.

Run:     segmv3 data pack data/cityscapes data/cityscapes-pack
         segmv3 train configs/recipes/cityscapes_best.py --data.cache data/cityscapes-pack
         or torchrun --nproc-per-node 4 -- tools/train.py configs/recipes/cityscapes_best.py ... on four GPUs
         from ImageNet weights: --model.pretrained torchvision/mobilenet_v3_large --optim.lr 0.01 --optim.head-lr 10
Net:     lraspp_large_d8: 1,507,198 parameters, 9.31 GMACs at 1024x2048
Recipe:  that of cityscapes_long, and
         - OHEM 0.9, at least a sixteenth of the pixels (PIDNet's threshold, BiSeNet's minimum: arXiv 2206.02066,
           1808.00897): +0.2 to +0.9 elsewhere (BiSeNetV2, RegSeg)
         - auxiliary heads, weight 0.4 (PSPNet, arXiv 1612.01105): BiSeNetV2 gained 3.5 by its own
         - half of the crops around a class drawn uniformly (arXiv 1812.01593; RegSeg), pieces of rare classes pasted
           in (arXiv 2012.07177), RandAugment's colours (arXiv 1909.13719; RegSeg): no published figure for each alone
         What each of them gives these nets has not been measured on Cityscapes.
Cost:    on one H200-class GPU: unmeasured (segmv3 benchmark training says the hours of 320,000 steps);
         on two CPU cores: out of reach
Score:   not measured (no Cityscapes at hand)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import Loss, load_config

long = load_config(Path(__file__).with_name("cityscapes_long.py"))
config = replace(
    long,
    data=replace(long.data, photometric="randaugment", class_uniform=0.5, copy_paste=0.3),
    loss=Loss(ohem=0.9, min_kept=0.0625, auxiliary=0.4),
)

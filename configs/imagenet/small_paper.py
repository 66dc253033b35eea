"""MobileNetV3-Small on ImageNet, the recipe of the MobileNetV3 paper (arXiv 1905.02244, section 6.1.1).

Run:     torchrun --nproc-per-node 8 -- tools/classify.py train configs/imagenet/small_paper.py
Net:     2,542,856 parameters, 0.057 GMACs at 224x224
Recipe:  that of large_paper: RMSProp with momentum 0.9, learning rate 0.1 times 0.99 every 3 epochs, batch 4096, L2
         1e-5, dropout 0.2 (0.8 kept), weights averaged with decay 0.9999. The paper has one recipe for both sizes
Ours:    as in large_paper
Score:   not measured (no ImageNet at hand); the paper has 67.4 % top-1
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import Classification, load_config

large = load_config(Path(__file__).with_name("large_paper.py"), kind=Classification)
config = replace(large, model=replace(large.model, backbone=replace(large.model.backbone, size="small")))

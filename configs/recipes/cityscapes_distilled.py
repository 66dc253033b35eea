"""MobileNetV3-Large with LR-ASPP on Cityscapes, from scratch, taught by the labels and by a larger net.

Run:     segmv3 data pack data/cityscapes data/cityscapes-pack
         segmv3 train configs/recipes/cityscapes_distilled.py --data.cache data/cityscapes-pack
         or torchrun --nproc-per-node 4 -- tools/train.py configs/recipes/cityscapes_distilled.py ... on four GPUs
         the teacher is what cityscapes_plus leaves; a better one: --distill.teacher FOLDER, where save_pretrained of
         segmentation-models-pytorch wrote a net with these 19 classes
Net:     lraspp_large_d8: 1,507,198 parameters, 9.31 GMACs at 1024x2048
Recipe:  that of cityscapes_best, and channel-wise distillation of the logits, temperature 4, weight 3 (arXiv
         2011.13256): 0.5 to 2.3 points elsewhere, less the longer the schedule (CIRKD's README: a DeepLabV3 on
         MobileNetV2 from 73.12 to 74.66 by it)
Cost:    on one H200-class GPU: unmeasured, with the teacher's passes on top
         (segmv3 benchmark training says the hours of 320,000 steps);
         on two CPU cores: out of reach
Score:   not measured (no Cityscapes at hand)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import Distill, load_config

config = replace(
    load_config(Path(__file__).with_name("cityscapes_best.py")),
    distill=Distill(teacher="runs/cityscapes_plus/best.safetensors", weight=3.0, temperature=4.0),
)

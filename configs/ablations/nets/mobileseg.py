"""MobileNetV3-Small with PaddleSeg's MobileSeg head: a row of plus_nets.toml."""

from dataclasses import replace
from pathlib import Path

from segmv3.config import MobileSeg, Model, load_config

best = load_config(Path(__file__).parents[2] / "recipes" / "camvid_0006r0_best.py")
config = replace(best, model=Model(backbone=best.model.backbone, head=MobileSeg()))

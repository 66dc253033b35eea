"""MobileNetV3-Small, dilated, with LR-ASPP: a row of plus_nets.toml."""

from dataclasses import replace
from pathlib import Path

from segmv3.config import load_config
from segmv3.models.zoo import NETS

best = load_config(Path(__file__).parents[2] / "recipes" / "camvid_0006r0_best.py")
config = replace(best, model=NETS["lraspp_small_d8"])

"""PP-LCNet of half the width with the plus head: a row of plus_nets.toml."""

from dataclasses import replace
from pathlib import Path

from segmv3.config import LRASPPPlus, Model, Timm, load_config

best = load_config(Path(__file__).parents[2] / "recipes" / "camvid_0006r0_best.py")
config = replace(best, model=Model(backbone=Timm(name="lcnet_050"), head=LRASPPPlus(channels=64, finest=4)))

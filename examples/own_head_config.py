"""The quickstart with the head of own_head.py."""

from dataclasses import replace
from pathlib import Path

from own_head import Sum

from segmv3.config import load_config

base = load_config(Path(__file__).parents[1] / "configs/quickstart.py")
config = replace(base, model=replace(base.model, head=Sum()))

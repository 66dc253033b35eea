"""The quickstart with the head of own_head.py."""

from dataclasses import replace

from own_head import Sum

from segmv3.config import load_config

base = load_config("quickstart")
config = replace(base, model=replace(base.model, head=Sum()))

"""MobileNetV3-Small with the plus head on CamVid, from scratch, in less than three hours of two CPU cores.

Run:     segmv3 train configs/recipes/camvid_two_cores.py --data.root data/camvid
         segmv3 evaluate configs/recipes/camvid_two_cores.py --data.root data/camvid --split test
             --weights runs/camvid_two_cores/best.safetensors
Net:     lraspp_small_plus with the 1/4 features and 64 filters in the head: 913,515 parameters
         with 11 classes, 0.26 GMACs at 360x480
Recipe:  that of camvid_best on crops of 240x320, in one stage of 24,000 steps: the length counts more than anything
         else that was tried (docs/results/generalisation.md)
Cost:    32.2 images/s in the first 250 steps on two CPU cores (AVX-512), which makes 1 h 40 min, and some minutes for
         the scores; on a GPU: unmeasured
Score:   not measured: the whole run was not made yet
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import load_config

best = load_config(Path(__file__).with_name("camvid_best.py"))
config = replace(
    best,
    model=replace(best.model, head=replace(best.model.head, channels=64)),
    data=replace(best.data, crop_size=(240, 320), workers=0),
    schedule=replace(best.schedule, steps=24_000, warmup_steps=500, eval_every=1200, save_every=400),
)

"""A plain loop on CamVid without drive 0006R0: the baseline of the held-out drive.

Run:     python tools/camvid_holdout.py data/camvid data/camvid-0006R0
         segmv3 train configs/recipes/camvid_0006r0_plain.py
Net:     torchvision's LR-ASPP on MobileNetV3-Small: 1,076,414 parameters with 11 classes, 0.42 GMACs at 360x480
Recipe:  that of camvid_plain for these frames: 40 epochs of them
Protocol: trained without drive 0006R0 (266 frames), scored on its 101: the honest estimate that CamVid allows
Cost:    on one H200-class GPU: unmeasured; on two CPU cores: 18 minutes of one
Score:   31.9 %, one seed (docs/results/camvid.md)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import load_config

plain = load_config(Path(__file__).with_name("camvid_plain.py"))
config = replace(
    plain,
    data=replace(plain.data, root=Path("data/camvid-0006R0")),
    schedule=replace(plain.schedule, steps=1330, eval_every=133, save_every=133),
)

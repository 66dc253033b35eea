"""MobileNetV3-Small with the plus head on CamVid without drive 0006R0: the best recipe, scored on that drive.

Run:     python tools/camvid_holdout.py data/camvid data/camvid-0006R0
         segmv3 data pack data/camvid-0006R0 data/camvid-0006R0-pack
         segmv3 train configs/recipes/camvid_0006r0_best.py --data.cache data/camvid-0006R0-pack
         on a GPU: --precision bf16 --compile auto
Net:     lraspp_small_plus with the 1/4 features, for poles of one to three pixels: 964,651 parameters
         with 11 classes, 0.43 GMACs at 360x480
Recipe:  that of camvid_best for these frames: 1,000 epochs of them, class weights from their frequencies
Protocol: trained without drive 0006R0 (266 frames), scored on its 101: the honest estimate that CamVid allows
Cost:    on one H200-class GPU: unmeasured; on two CPU cores: unmeasured; 11,000 steps on smaller crops took one
         hardware thread 72 minutes
Score:   not measured in full; 43.70 %, 45.99 % with six scales and flip, after 11,000 steps on crops of 240x320 with 64
         filters in the head, one seed (docs/results/camvid.md)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import load_config

best = load_config(Path(__file__).with_name("camvid_best.py"))
config = replace(
    best,
    data=replace(best.data, root=Path("data/camvid-0006R0")),
    loss=replace(best.loss, class_weights=(0.58, 0.43, 2.35, 0.42, 1.0, 0.89, 2.33, 2.05, 0.96, 2.65, 3.75)),
    schedule=replace(best.schedule, steps=33_300, eval_every=1665, save_every=333),
)

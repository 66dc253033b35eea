"""MobileNetV3-Small with the plus head on CamVid without drive 0006R0: the best recipe, scored on that drive.

Run:     python tools/camvid_holdout.py data/camvid data/camvid-0006R0
         segmv3 data pack data/camvid-0006R0 data/camvid-0006R0-pack
         segmv3 train configs/recipes/camvid_0006r0_best.py --data.cache data/camvid-0006R0-pack
         on a GPU: --precision bf16 --compile auto
Net:     lraspp_small_plus with the 1/4 features, for poles of one to three pixels: 964,651 parameters
         with 11 classes, 0.43 GMACs at 360x480
Recipe:  1,000 epochs of AdamW at batch 8, cosine, crops of the image size at scales 0.5 to 2, no ImageNet weights: what
         small nets take on this little data (LMFFNet's and DABNet's scripts: 1,000 epochs, Adam 1e-3, class weights);
         class weights sqrt(median / frequency), the square root of SegNet's (arXiv 1511.00561), which would weight
         bicycles 100 times as much as the road; a moving average of the weights
Protocol: trained without drive 0006R0 (266 frames), scored on its 101: the honest estimate that CamVid allows
Cost:    on one H200-class GPU: unmeasured; on two CPU cores: unmeasured (the log's first lines tell)
Score:   not measured
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import AdamW, Config, Data, Loss, LRASPPPlus, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=replace(NETS["lraspp_small_plus"], head=LRASPPPlus(finest=4)),
    data=Data(dataset="camvid", root=Path("data/camvid-0006R0"), batch_size=8, crop_size=(360, 480)),
    loss=Loss(class_weights=(0.58, 0.43, 2.35, 0.42, 1.0, 0.89, 2.33, 2.05, 0.96, 2.65, 3.75)),
    optim=AdamW(lr=2e-3, weight_decay=0.05),
    schedule=Schedule(
        steps=33_300, policy="cosine", min_lr=1e-5, warmup_steps=500, eval_every=1665, save_every=333, ema=0.999
    ),
)

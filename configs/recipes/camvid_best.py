"""MobileNetV3-Small with the plus head on CamVid, from scratch: the best recipe.

Run:     segmv3 data pack data/camvid data/camvid-pack
         segmv3 train configs/recipes/camvid_best.py --data.cache data/camvid-pack
         on a GPU: --precision bf16 --compile auto
Net:     lraspp_small_plus with the 1/4 features, for poles of one to three pixels: 964,651 parameters
         with 11 classes, 0.43 GMACs at 360x480
Recipe:  1,000 epochs of AdamW at batch 8, cosine, crops of the image size at scales 0.5 to 2, no ImageNet weights: what
         small nets take on this little data (LMFFNet's and DABNet's scripts: 1,000 epochs, Adam 1e-3, class weights);
         class weights sqrt(median / frequency), the square root of SegNet's (arXiv 1511.00561), which would weight
         bicycles 100 times as much as the road; RandAugment's colours, which helped on a drive that training never sees
         (docs/results/camvid.md); a moving average of the weights; a rate of 8e-3 and auxiliary heads (arXiv
         1612.01105), which in 1,000 steps gave 5 to 6 points together
Protocol: trained on the 367 frames, scored on val, which lies near them (docs/results/camvid.md): it flatters
Cost:    on one H200-class GPU: unmeasured; on two CPU cores about nine hours; 12,600 steps in two
         stages took one hardware thread 84 minutes
Score:   not measured in full; 69.68 % on val, 71.57 % with six scales and flip, after two short stages with jitter and
         64 filters, one seed (docs/results/camvid.md)
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import AdamW, Config, Data, Loss, LRASPPPlus, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=replace(NETS["lraspp_small_plus"], head=LRASPPPlus(finest=4)),
    data=Data(
        dataset="camvid",
        root=Path("data/camvid"),
        batch_size=8,
        crop_size=(360, 480),
        photometric="randaugment",
    ),
    loss=Loss(class_weights=(0.52, 0.44, 2.14, 0.38, 1.0, 0.68, 1.96, 2.0, 0.87, 2.65, 3.92), auxiliary=0.4),
    optim=AdamW(lr=8e-3, weight_decay=0.05),
    schedule=Schedule(
        steps=45_900, policy="cosine", min_lr=1e-5, warmup_steps=500, eval_every=2295, save_every=459, ema=0.999
    ),
)

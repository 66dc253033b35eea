"""A plain loop on CamVid: the baseline.

Run:     segmv3 train configs/recipes/camvid_plain.py
Net:     torchvision's LR-ASPP on MobileNetV3-Small: 1,076,414 parameters with 11 classes, 0.42 GMACs at 360x480
Recipe:  what a short script does: AdamW, cross-entropy, flips, 40 epochs; no scales, no jitter, no class weights.
         It stands for the plain loop that the other recipes are measured against
Protocol: trained on the 367 frames, scored on val, which lies near them (docs/results/camvid.md): it flatters
Cost:    on one H200-class GPU: unmeasured; on two CPU cores: unmeasured
Score:   not measured
"""

from pathlib import Path

from segmv3.config import LRASPP, AdamW, Config, Data, MobileNetV3, Model, Schedule

config = Config(
    model=Model(
        backbone=MobileNetV3(size="small", family="torchvision", output_stride=16),
        head=LRASPP(tap="output", gate="sigmoid", gate_bias=False),
    ),
    data=Data(
        dataset="camvid",
        root=Path("data/camvid"),
        batch_size=8,
        crop_size=(360, 480),
        scale_range=(1.0, 1.0),
        cat_max_ratio=1.0,
        jitter=0.0,
    ),
    optim=AdamW(lr=1e-3, weight_decay=0.01, decay_bn_and_bias=True),
    schedule=Schedule(steps=1840, policy="poly", power=0.9, min_lr=0, eval_every=184, save_every=184),
)

"""MobileNetV3-Large with LR-ASPP on Cityscapes as the paper trained it, as far as that is known.

Run:     segmv3 data pack data/cityscapes data/cityscapes-pack
         segmv3 train configs/recipes/cityscapes_paper.py --data.cache data/cityscapes-pack
         or torchrun --nproc-per-node 4 -- tools/train.py configs/recipes/cityscapes_paper.py ... on four GPUs
Net:     lraspp_large_d8: 1,507,198 parameters, 9.31 GMACs at 1024x2048 (paper, table 7 row 8: 72.36 %)
Recipe:  the paper names DeepLab's protocol and no numbers (arXiv 1905.02244, section 6.4); DeepLab's own page says
         crops of 769x769, 90,000 steps, decay 4e-5, poly 0.9 (tensorflow/models, research/deeplab), issue 3677 there
         the learning rate 0.01; no ImageNet weights. Batch 16 is ours: "above 8" is all that is said.
Cost:    on one H200-class GPU: unmeasured (9/32 of the hours that segmv3 benchmark training --size 769 769 says);
         on two CPU cores: out of reach
Score:   not measured (no Cityscapes at hand)
"""

from pathlib import Path

from segmv3.config import SGD, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_large_d8"],
    data=Data(
        dataset="cityscapes",
        root=Path("data/cityscapes"),
        batch_size=16,
        crop_size=(769, 769),
        scale_range=(0.5, 2.0),
        cat_max_ratio=1.0,
        jitter=0.0,
        workers=8,
    ),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=4e-5, decay_bn_and_bias=False),
    schedule=Schedule(steps=90_000, policy="poly", power=0.9, min_lr=0, eval_every=5000, save_every=2000),
    precision="bf16",
)

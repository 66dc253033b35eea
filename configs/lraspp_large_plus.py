"""MobileNetV3-Large with the plus head on Cityscapes fine, from scratch: the accuracy option.

Run:     segmv3 train configs/lraspp_large_plus.py --data.root data/cityscapes
         torchrun --nproc-per-node 4 -- tools/train.py configs/lraspp_large_plus.py
         with ImageNet weights for the whole backbone: --model.pretrained torchvision/mobilenet_v3_large
Net:     2,960,451 parameters, 9.68 GMACs at 1024x2048
Recipe:  that of lraspp_large_d8, and nothing else changed, so that the difference is the net's
Score:   not measured yet (no Cityscapes at hand)
"""

from pathlib import Path

from segmv3.config import SGD, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_large_plus"],
    data=Data(
        dataset="cityscapes",
        root=Path("data/cityscapes"),
        batch_size=16,
        crop_size=(512, 1024),
        scale_range=(0.5, 2.0),
        cat_max_ratio=0.75,
        workers=4,
    ),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Schedule(
        steps=320_000, policy="poly", power=0.9, min_lr=1e-4, warmup_steps=1000, eval_every=8000, save_every=2000
    ),
    precision="bf16",
)

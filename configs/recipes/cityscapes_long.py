"""MobileNetV3-Large with LR-ASPP on Cityscapes, from scratch, 320k steps (1,721 epochs) of plain cross-entropy.

Run:     segmv3 data pack data/cityscapes data/cityscapes-pack
         segmv3 train configs/recipes/cityscapes_long.py --data.cache data/cityscapes-pack
         or torchrun --nproc-per-node 4 -- tools/train.py configs/recipes/cityscapes_long.py ... on four GPUs
Net:     lraspp_large_d8: 1,507,198 parameters, 9.31 GMACs at 1024x2048
Recipe:  RegSeg's for training from scratch (arXiv 2111.09957: SGD 0.05 after a warm-up of 3,000 steps, decay 1e-4 and
         none on BN, crops of 768 at scales 0.4 to 1.6; its batch is 8, so that 0.05 at 16 is careful), as long as
         mmsegmentation's 320,000 steps, with a moving average of the weights (the 800-epoch recipes of
         Deci-AI/super-gradients take 0.9999)
Cost:    on one H200-class GPU: unmeasured (segmv3 benchmark training says the hours of 320,000 steps);
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
        crop_size=(768, 768),
        scale_range=(0.4, 1.6),
        workers=8,
    ),
    optim=SGD(lr=0.05, momentum=0.9, weight_decay=1e-4, decay_bn_and_bias=False),
    schedule=Schedule(
        steps=320_000,
        policy="poly",
        power=0.9,
        min_lr=0,
        warmup_steps=3000,
        eval_every=8000,
        save_every=2000,
        ema=0.9998,
    ),
    precision="bf16",
    compile="auto",
)

"""MobileNetV3-Large on ImageNet, the recipe of the MobileNetV3 paper (arXiv 1905.02244, section 6.1.1).

Run:     torchrun --nproc-per-node 8 -- tools/classify.py train configs/imagenet/large_paper.py
Net:     5,483,032 parameters, 0.217 GMACs at 224x224
Recipe:  RMSProp with momentum 0.9, learning rate 0.1 times 0.99 every 3 epochs, batch 4096, L2 1e-5, dropout 0.2
         (0.8 kept), weights averaged with decay 0.9999
Ours:    the paper says neither how long it trained nor RMSProp's smoothing and epsilon: 600 epochs (the learning rate
         falls to 0.013), 0.9 and 1e-3 here, and 5 epochs of warm-up; L2 leaves BN and biases out; images are cropped
         and mirrored, without the paper's other augmentation
Score:   not measured (no ImageNet at hand); the paper has 75.2 % top-1
"""

from pathlib import Path

from segmv3.config import Classification, Classifier, ImageFolder, MobileNetV3, RMSProp, Schedule

IMAGES = 1_281_167  # of ImageNet's train split
BATCH = 4096
EPOCH = IMAGES / BATCH  # steps

config = Classification(
    model=Classifier(
        backbone=MobileNetV3(size="large", padding="same"),
        dropout=0.2,
        bn_momentum=0.01,  # TensorFlow's decay of 0.99
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
    ),
    data=ImageFolder(root=Path("data/imagenet"), batch_size=BATCH, workers=16),
    optim=RMSProp(lr=0.1, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5),
    schedule=Schedule(
        steps=round(600 * EPOCH),
        policy="step",
        decay_rate=0.99,
        decay_every=round(3 * EPOCH),
        warmup_steps=round(5 * EPOCH),
        eval_every=round(2 * EPOCH),
        save_every=100,
        ema=0.9999,
    ),
    precision="bf16",
)

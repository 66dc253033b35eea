"""MobileNetV3-Large on ImageNet, the recipe that timm's TensorFlow ports name.

Run:     segmv3 classify train configs/imagenet/large_tf.py --data.root data/imagenet
         torchrun --nproc-per-node 4 -- tools/classify.py train configs/imagenet/large_tf.py
Net:     5,483,032 parameters, 0.217 GMACs at 224x224, padded and normalised as in TensorFlow
Recipe:  RMSProp (decay 0.9, momentum 0.9), learning rate 0.1, weight decay 1e-5 and dropout 0.2 (0.8 kept)
Ours:    the ports name batch 4096 with this rate; here it is 1024 at the same rate. They name no schedule: 300 epochs,
         learning rate times 0.97 every 2.4 epochs after 5 of warm-up (EfficientNet's), label smoothing 0.1. The
         weights are averaged with decay 0.9999, as in the paper
Score:   not measured (no ImageNet at hand); published 75.51 % top-1, 92.61 % top-5 for tf_mobilenetv3_large_100 (timm)
"""

from pathlib import Path

from segmv3.config import Classification, Classifier, ImageFolder, MobileNetV3, RMSProp, Schedule

IMAGES = 1_281_167  # of ImageNet's train split
BATCH = 1024
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
        steps=round(300 * EPOCH),
        policy="step",
        decay_rate=0.97,
        decay_every=round(2.4 * EPOCH),
        min_lr=0.0,
        warmup_steps=round(5 * EPOCH),
        eval_every=round(EPOCH),
        save_every=250,
        ema=0.9999,
    ),
    label_smoothing=0.1,
    precision="bf16",
)

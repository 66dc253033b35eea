"""MobileNetV3-Small on ImageNet, d-li14's recipe.

Run:     segmv3 classify train configs/imagenet/small_dli14.py --data.root data/imagenet
         torchrun --nproc-per-node 4 -- tools/classify.py train configs/imagenet/small_dli14.py
Net:     2,542,856 parameters, 0.057 GMACs at 224x224
Recipe:  SGD with momentum, batch 1024 for 150 epochs, learning rate 0.1 to 0.4 over 5 epochs, then cosine; weight
         decay 4e-5 but none on biases and BN, dropout 0.2, no label smoothing (width 0.75: --model.dropout 0.1)
Score:   not measured (no ImageNet at hand); d-li14 published 67.214 % top-1, 87.304 % top-5
         (github.com/d-li14/mobilenetv3.pytorch)
"""

from pathlib import Path

from segmv3.config import SGD, Classification, Classifier, ImageFolder, MobileNetV3, Schedule

IMAGES = 1_281_167  # of ImageNet's train split
BATCH = 1024
EPOCH = IMAGES / BATCH  # steps

config = Classification(
    model=Classifier(backbone=MobileNetV3(size="small", family="d-li14", bn_eps=1e-5), dropout=0.2),
    data=ImageFolder(root=Path("data/imagenet"), batch_size=BATCH, workers=16),
    optim=SGD(lr=0.4, momentum=0.9, weight_decay=4e-5, decay_bn_and_bias=False),
    schedule=Schedule(
        steps=round(150 * EPOCH),
        policy="cosine",
        min_lr=0.0,
        warmup_steps=round(5 * EPOCH),
        warmup_from=0.1,
        eval_every=round(EPOCH),
        save_every=250,
    ),
    precision="bf16",
)

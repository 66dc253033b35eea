"""Image classification: how backbones get their ImageNet weights. Nothing else in segmv3 imports this package."""

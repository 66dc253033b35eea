"""Object detection: boxes by SSDLite on the backbones. Nothing else in segmv3 imports this package."""

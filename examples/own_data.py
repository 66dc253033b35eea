"""A data source of your own: each image has its mask beside it, `0.jpg` and `0_mask.png`.

`segmv3 train examples/own_data_config.py` trains on it, `segmv3 data check examples/own_data_config.py` examines it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segmv3.data.sources import Source
from segmv3.labels import Classes, named_classes


@dataclass(frozen=True)
class SideBySide(Source):
    """Masks hold 0 for road, 1 for sky, and 255 for what is neither."""

    ending: str = "_mask.png"  # fields are recorded with a run

    def classes(self, root: Path) -> Classes:
        return named_classes("road", "sky")

    def pairs(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        images = sorted((root / split).glob("*.jpg"))
        return [(image, image.with_name(image.stem + self.ending)) for image in images]


def draw(root: Path) -> Path:
    """Draw four bright skies above dark roads for each split, 64 x 96."""
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            mask = np.zeros((64, 96), np.uint8)
            mask[: 20 + 4 * i + 2 * number] = 1
            Image.fromarray(60 + 150 * mask).convert("RGB").save(root / split / f"{i}.jpg")
            Image.fromarray(mask).save(root / split / f"{i}_mask.png")
    return root

"""mini-city: synthetic street scenes in true Cityscapes layout, so that anyone can train without Cityscapes.

This file writes the set: `scene` paints every picture and lists its objects, and cityscapesScripts' own tools
turn the painted polygons into the label images.
"""

import json
from pathlib import Path

import numpy as np

from segmv3.data.listing import city_of
from segmv3.errors import ConfigError, OutputError, shortened
from segmv3.files import make_folder, write_bytes, write_json
from segmv3.images import UInt8Array, write_png
from segmv3.media.encoding import VideoWriter
from segmv3.mini_city.scene import CITIES, FPS, render_frame, render_scene
from segmv3.official import coco_boxes
from segmv3.pipeline import Progress
from segmv3.records import read_json, typed

__all__ = ["render_frame", "render_scene", "write_mini_city"]

_FORMAT = 1
_PARAMETERS = "mini-city.json"
_LEAST_SIZE = (64, 128)
_LARGEST_SIDE, _MOST_IMAGES = 8192, 100_000


def write_mini_city(
    root: Path,
    *,
    train: int = 48,
    val: int = 12,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
    video: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a small synthetic Cityscapes (leftImg8bit and gtFine, train and val) under `root`.

    The boxes of all objects lie beside them, in COCO's form: `boxes_train.json` and `boxes_val.json`. A repeated call
    with the same parameters finds the finished set and changes nothing, but for boxes that an earlier version lacked.

    Args:
        root: the folder.
        train: images of the split train.
        val: images of the split val.
        size: (height, width) in pixels.
        seed: of all random numbers.
        video: with a number, one drive of so many frames instead: `drive.webm`, and its frames as the split val.
        progress: called with (images done, images in all) after each image.

    Raises:
        ConfigError: a size or a count is too small or too large.
        OutputError: `root` cannot be written, or holds anything but exactly this mini-city.
        ResourceError: a video is asked for without the package av.
    """
    if train < 1 or val < 1:
        raise ConfigError(f"mini-city needs at least 1 image in each split, got {train} train and {val} val")
    if size[0] < _LEAST_SIZE[0] or size[1] < _LEAST_SIZE[1]:
        raise ConfigError(f"mini-city images are at least 64 x 128 (height x width), got {size[0]} x {size[1]}")
    if train + val > _MOST_IMAGES or max(size) > _LARGEST_SIDE:
        raise ConfigError(f"mini-city draws at most {_MOST_IMAGES:,} images of at most {_LARGEST_SIDE:,} pixels a side")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")
    if video is not None and not 1 <= video <= _MOST_IMAGES:
        raise ConfigError(f"a drive has 1 to {_MOST_IMAGES:,} frames, got {video:,}")
    parameters: dict[str, object] = {"format": _FORMAT, "train": train, "val": val, "size": list(size), "seed": seed}
    if video:
        parameters |= {"train": 0, "val": video, "video": True}
    if _is_written(root, parameters):
        _write_boxes(root)
        return
    make_folder(root)
    tell = progress or (lambda done, total: None)
    if video:
        _write_drive(root, video, size, seed, tell)
    else:
        scenes = [(split, i) for split, count in (("train", train), ("val", val)) for i in range(count)]
        for done, (split, index) in enumerate(scenes, start=1):
            name = f"{CITIES[split]}_{index:06d}_000019"
            _write_scene(root, split, name, *render_scene(split, index, size=size, seed=seed))
            tell(done, len(scenes))
    _write_boxes(root)
    write_bytes(root / _PARAMETERS, (json.dumps(parameters, indent=2) + "\n").encode())


def _is_written(root: Path, parameters: dict[str, object]) -> bool:
    """Whether `root` already holds this mini-city; refuses a folder that holds anything else."""
    try:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        found = typed(read_json(root / _PARAMETERS), dict)
        differing = [
            f"{key} {shortened(found.get(key))} there, {parameters[key]} asked"
            for key in parameters
            if found.get(key) != parameters[key]
        ]
    except (OSError, ValueError):
        raise OutputError(
            f"{root} is not empty and holds no finished mini-city; nothing was overwritten. "
            "Choose another folder, or remove this one if it is left from an interrupted run"
        ) from None
    if differing:
        raise OutputError(
            f"{root} is not empty: it holds another mini-city ({'; '.join(differing)}); "
            "nothing was overwritten. Choose another folder"
        )
    return True


def _write_drive(root: Path, frames: int, size: tuple[int, int], seed: int, tell: Progress) -> None:
    with VideoWriter(root / "drive.webm", FPS, size) as video:
        for frame in range(frames):
            pixels, objects = render_frame(frame, size=size, seed=seed)
            video.write(pixels)
            _write_scene(root, "val", f"minidrive_{seed:06d}_{frame:06d}", pixels, objects)
            tell(frame + 1, frames)


def _write_boxes(root: Path) -> None:
    for split in CITIES:
        path = root / f"boxes_{split}.json"
        if not path.exists() and (root / "leftImg8bit" / split).is_dir():
            write_json(path, coco_boxes(root, split))


def _write_scene(root: Path, split: str, name: str, pixels: UInt8Array, objects: list[dict[str, object]]) -> None:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    city = city_of(name)
    images = make_folder(root / "leftImg8bit" / split / city)
    labels = make_folder(root / "gtFine" / split / city)
    write_png(images / f"{name}_leftImg8bit.png", pixels)
    polygons = labels / f"{name}_gtFine_polygons.json"
    content = {"imgHeight": pixels.shape[0], "imgWidth": pixels.shape[1], "objects": objects}
    write_bytes(polygons, (json.dumps(content) + "\n").encode(), durable=False)
    annotation = Annotation()
    annotation.fromJsonFile(str(polygons))
    for kind, encoding in (("labelIds", "ids"), ("labelTrainIds", "trainIds"), ("color", "color")):
        write_png(labels / f"{name}_gtFine_{kind}.png", np.asarray(createLabelImage(annotation, encoding)))
    # The tool's own saving fails: Pillow >= 13 writes no 32-bit PNG. Cityscapes' files have 16 bits anyway.
    instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
    write_png(labels / f"{name}_gtFine_instanceIds.png", instances)  # type: ignore[arg-type]

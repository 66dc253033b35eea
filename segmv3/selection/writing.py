"""What `segmv3 data next` writes: a list, a page, and the frames themselves where they are asked for."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from segmv3.decode import label_map
from segmv3.errors import DataError
from segmv3.files import make_folder, new_file_beside, write_bytes, write_error
from segmv3.images import UInt8Array, write_png
from segmv3.labels import Classes
from segmv3.media.draw import occurring, overlay
from segmv3.report.html import data_uri, write_page
from segmv3.report.samples import Sample, shrunk
from segmv3.selection.choosing import IMAGES, LIST, PAGE, Chosen, Frame, Pool, Progress, pictures
from segmv3.selection.ranking import Look
from segmv3.selection.settings import Settings


def write(
    folder: Path,
    chosen: Chosen,
    about: Sequence[str],
    classes: Classes,
    pool: Pool,
    settings: Settings,
    look: Callable[[UInt8Array], Look],
    progress: Progress,
) -> Chosen:
    """Write a choice into a folder. The net runs again over its frames for the page, whose first lines are `about`."""
    make_folder(folder)
    files, shown, present = dict[int, Path](), dict[int, list[tuple[str, str]]](), set[int]()
    for frame, image in pictures(pool, settings.every, frozenset(frame.number for frame in chosen.frames)):
        if isinstance(image, DataError):  # it was there a moment ago
            raise image
        files[frame.number] = _file(frame, image, folder, settings.save)
        seen = look(image)
        labels = label_map(seen.logits, (image.shape[0], image.shape[1]))[0].cpu().numpy()
        small = shrunk(Sample(frame.name, image, labels, labels))
        present |= occurring(small.prediction, classes)
        drawn = {"image": small.image, "unsure": heat(small.image, seen.unsure.cpu().numpy())}
        drawn["predicted"] = overlay(small.image, small.prediction, classes)
        shown[frame.number] = [(what, data_uri(pixels, "JPEG")) for what, pixels in drawn.items()]
        progress("write the choice", len(shown), len(chosen.frames))
    page = write_page(
        folder / PAGE,
        "selection.html",
        title=f"{len(chosen.frames)} frames to label next",
        about=about,
        chosen=chosen,
        names=classes.names,
        shown=shown,
        present=classes.key(present),
    )
    write_bytes(folder / LIST, os.fsencode("".join(f"{files[frame.number]}\n" for frame in chosen.frames)))
    return replace(chosen, files=(folder / LIST, page))


def heat(image: UInt8Array, unsure: np.ndarray) -> UInt8Array:
    """Colour a picture (uint8 H x W x 3) in grey from blue (0, sure) to yellow (1), by float32 values of any h x w."""
    values = cv2.convertScaleAbs(cv2.resize(unsure, image.shape[1::-1]), alpha=255)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colors = cv2.cvtColor(cv2.applyColorMap(values, cv2.COLORMAP_PLASMA), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(grey, 0.35, colors, 0.65, 0)


def _file(frame: Frame, image: UInt8Array, folder: Path, save: str) -> Path:
    """The file of a frame that the list names, written where it is asked for."""
    if frame.path and save == "list":
        return Path(os.path.abspath(frame.path))  # noqa: PTH100 (links are kept)
    suffix = frame.path.suffix if frame.path else ".png"
    target = (folder / IMAGES / f"{frame.name.removesuffix(suffix)}{suffix}").absolute()
    make_folder(target.parent)
    if not frame.path:
        write_png(target, image)
        return target
    try:
        descriptor, part = new_file_beside(target)
        os.close(descriptor)
        if save == "links":
            part.unlink()
            part.symlink_to(frame.path.resolve())
        else:
            shutil.copyfile(frame.path, part)
        part.replace(target)
    except OSError as error:
        raise write_error(error, target, frame.path.stat().st_size) from None
    return target

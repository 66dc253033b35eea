"""The result of the data doctor for people: a table for the terminal and `check.html`, a page with pictures.

Both are made from the JSON dict that `segmv3.doctor.examine` returns. The page needs no other file, no script
and no network, like the report of a run.
"""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich import box
from rich.table import Table

from segmv3.data.listing import count_of
from segmv3.files import make_folder
from segmv3.images import UInt8Array, write_png
from segmv3.labels import Classes
from segmv3.media.draw import colorize, legend, occurring, overlay
from segmv3.report.html import NONE, Chart, data_uri, write_page
from segmv3.report.plots import NORMAL, SMALL, Theme, cut, new_figure, pixels_of, style
from segmv3.report.samples import side_by_side

_LINES = 10  # files of a finding in the terminal
_SHOWN = 6  # files of a finding on the page
_SIDE = 480  # pixels of a thumbnail
_GAP = 12


@dataclass(frozen=True)
class LabelledImage:
    """One pair to look at."""

    split: str
    name: str
    image: UInt8Array
    """uint8 H x W x 3, RGB."""
    labels: UInt8Array
    """uint8 H x W train ids, 255 = ignore."""


# --- terminal ---


def splits_table(result: dict[str, Any]) -> Table:
    """What each split holds."""
    table = Table(box=box.SIMPLE)
    for column in ("", *result["splits"]):
        table.add_column(column, overflow="fold")
    for row in _split_rows(result):
        table.add_row(*row)
    return table


def classes_table(result: dict[str, Any]) -> Table:
    """The share of each class of the labelled pixels, and in how many images it occurs."""
    table = Table(box=box.SIMPLE)
    table.add_column("class")
    for split in result["splits"]:
        table.add_column(f"{split} %", justify="right")
        table.add_column("images", justify="right")
    for row in _class_rows(result):
        table.add_row(*row)
    return table


def findings_lines(result: dict[str, Any]) -> list[str]:
    """Every finding with the first of its files, errors first; paths are below the root."""
    lines = []
    for finding in result["findings"]:
        lines.append(f"{finding['level']}: {finding['split']}: {finding['text']}")
        lines += [f"    {_line(file, result)}" for file in finding["files"][:_LINES]]
        if len(finding["files"]) > _LINES:
            lines.append(f"    and {len(finding['files']) - _LINES:,} more")
    return lines


def verdict(result: dict[str, Any]) -> str:
    """One line: may this data be trained on?"""
    images = sum(each["images"] for each in result["splits"].values())
    state = "can be used" if result["usable"] else "cannot be used as it is"
    found = " and ".join(_level_count(result, level) for level in ("error", "warning"))
    *others, last = result["splits"]
    splits = f"{', '.join(others)} and {last}" if others else last
    return f"{result['dataset']} {state}: {found} in {count_of(images, 'image')} of {splits}"


def _level_count(result: dict[str, Any], level: str) -> str:
    """`6 errors (10 files)`."""
    files = {file["path"] for finding in result["findings"] if finding["level"] == level for file in finding["files"]}
    return count_of(result[f"{level}s"], level) + (f" ({count_of(len(files), 'file')})" if files else "")


def _split_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The name of a fact, and what it is in each split."""
    facts: dict[str, Callable[[dict[str, Any]], str]] = {
        "images": lambda each: f"{each['images']:,}",
        "labels": lambda each: f"{each['labels']:,}",
        "width x height": lambda each: _most(each["sizes"]),
        "images are": lambda each: _most(each["image_modes"]),
        "labels are": lambda each: _most(each["label_modes"]),
        "labelled pixels": lambda each: NONE if (share := each["labelled_share"]) is None else f"{share:.2f} %",
        "mean R G B": lambda each: " ".join(f"{value:.1f}" for value in each["mean"] or ()) or NONE,
        "std R G B": lambda each: " ".join(f"{value:.1f}" for value in each["std"] or ()) or NONE,
    }
    return [(name, *map(of, result["splits"].values())) for name, of in facts.items()]


def _class_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The name of a class, and its share and its images in each split."""
    return [
        (row["name"], *(cell for split in result["splits"] for cell in _class_cells(row["splits"][split])))
        for row in result["classes"]
    ]


def _class_cells(each: dict[str, Any]) -> tuple[str, str]:
    if each["share"] is None:
        return NONE, NONE
    if not each["pixels"]:
        return "absent", "0"
    return ("< 0.01" if each["share"] < 0.01 else f"{each['share']:.2f}"), f"{each['images']:,}"


def _most(counts: dict[str, int], limit: int = 3) -> str:
    """`480x360` where all are alike, else `480x360 (364), 640x480 (3)`."""
    if len(counts) <= 1:
        return next(iter(counts), NONE)
    shown = ", ".join(f"{value} ({count:,})" for value, count in list(counts.items())[:limit])
    return shown + (f", {len(counts) - limit} more" if len(counts) > limit else "")


def _line(file: dict[str, Any], result: dict[str, Any]) -> str:
    return str(file["text"] or file["path"]).replace(f"{result['root']}/", "")


# --- page ---


def write_check_page(
    folder: Path,
    result: dict[str, Any],
    classes: Classes,
    samples: list[LabelledImage],
    read: Callable[[Path], UInt8Array | None],
    labels: Container[Path],
) -> Path:
    """Write `folder/check.html` and `folder/figures/`, each complete or not at all.

    Args:
        folder: an existing folder.
        result: as `segmv3.doctor.examine` returns it.
        classes: those of the data set.
        samples: pairs to show.
        read: a file that a finding names as RGB, uint8 H x W x 3; None where it cannot be decoded.
        labels: the files that are labels: flat colours, not photographs.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = make_folder(folder / "figures")
    bars = Chart(figures / "shares.png", lambda theme: share_bars(result, theme))
    thumbnails = [_thumbnails(sample, classes) for sample in samples]
    present = set().union(*(occurring(sample.labels, classes) for sample in samples))
    if samples:
        write_png(figures / "samples.png", sample_sheet(thumbnails, classes, present))
    else:
        (figures / "samples.png").unlink(missing_ok=True)
    images = sum(each["images"] for each in result["splits"].values())
    counts = (("image", images), ("error", result["errors"]), ("warning", result["warnings"]))
    id_splits, ids = _ids(result)
    return write_page(
        folder / "check.html",
        "check.html",
        title=f"{result['dataset']}: data check",
        result=result,
        verdict=verdict(result),
        metrics=[(name if n == 1 else f"{name}s", n, name == "error" and n > 0) for name, n in counts],
        findings=[_finding(finding, result, read, labels) for finding in result["findings"]],
        facts=[(name, values) for name, *values in _split_rows(result)],
        bars=bars,
        classes=[(name, classes.colors[i], values) for i, (name, *values) in enumerate(_class_rows(result))],
        samples=[(s.name, s.split, _addresses(pictures)) for s, pictures in zip(samples, thumbnails, strict=True)],
        present=classes.key(present),
        id_splits=id_splits,
        ids=ids,
    )


def share_bars(result: dict[str, Any], theme: Theme) -> UInt8Array:
    """Share of each class of the labelled pixels as bars in its colour: a bar a split, the first one the fullest."""
    rows, splits = result["classes"], [s for s, each in result["splits"].items() if each["labelled_pixels"]]
    thick = 0.78 / max(len(splits), 1)
    figure = new_figure(500, 60 + max(31, 15 * len(splits) + 8) * max(len(rows), 2))
    axes = figure.add_subplot()
    style(axes, theme, grid="x", x="share of the labelled pixels, %")
    axes.set_yticks(range(len(rows)), [cut(row["name"]) for row in rows], color=theme.ink, fontsize=NORMAL)
    top = max([row["splits"][split]["share"] for row in rows for split in splits], default=1.0)
    for number, split in enumerate(splits):
        places = np.arange(len(rows)) + (number - (len(splits) - 1) / 2) * thick
        shares = [row["splits"][split]["share"] for row in rows]
        fills = [(*(v / 255 for v in row["rgb"]), 1 - 0.55 * number / max(len(splits) - 1, 1)) for row in rows]
        axes.barh(places, shares, height=0.86 * thick, color=fills, edgecolor=theme.muted, linewidth=0.5, zorder=2)
        for place, share, row in zip(places, shares, rows, strict=True):
            text = f"{_class_cells(row['splits'][split])[0]}  {split}"
            axes.text(share + 0.012 * top, place, text, color=theme.muted, fontsize=SMALL, va="center_baseline")
    axes.set_xlim(0, 1.25 * top)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    return pixels_of(figure, theme)


def sample_sheet(rows: Sequence[Sequence[UInt8Array]], classes: Classes, present: set[int]) -> UInt8Array:
    """Rows of image | labels | labels over the image, and a legend of the classes in `present` below."""
    cell = max(row[0].shape[1] for row in rows)
    strips = [np.pad(side_by_side(row, cell, _GAP), ((0, _GAP), (0, 0), (0, 0)), constant_values=255) for row in rows]
    return np.vstack([*strips, legend(classes, strips[0].shape[1], present)])


def _thumbnails(sample: LabelledImage, classes: Classes) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    image = _shrunk(sample.image, flat=False)
    labels = cv2.resize(sample.labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return image, colorize(labels, classes), overlay(image, labels, classes)


def _shrunk(picture: UInt8Array, *, flat: bool) -> UInt8Array:
    """Shrink a picture to at most `_SIDE` columns and rows; flat colours stay as they are."""
    scale = min(_SIDE / max(picture.shape[:2]), 1.0)
    size = max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA)


def _finding(
    finding: dict[str, Any], result: dict[str, Any], read: Callable[[Path], UInt8Array | None], labels: Container[Path]
) -> dict[str, Any]:
    """A finding with its first files: what is wrong with each, and (caption, name, address) of its pictures.

    There is no address where a file cannot be decoded.
    """
    label = "label, illegal ids in red" if finding["kind"] == "illegal ids" else "label"

    def shown(path: Path) -> tuple[str, str, str]:
        flat, picture = path in labels, read(path)
        address = "" if picture is None else data_uri(_shrunk(picture, flat=flat), "PNG" if flat else "JPEG")
        return label if flat else "image", path.name, address

    files = [
        (_line(file, result), [shown(Path(place)) for place in (file["path"], file["partner"]) if place])
        for file in finding["files"][:_SHOWN]
    ]
    return finding | {"files": files, "more": max(len(finding["files"]) - _SHOWN, 0)}


def _addresses(thumbnails: Sequence[UInt8Array]) -> list[tuple[str, str]]:
    kinds = (("image", "JPEG"), ("labels", "PNG"), ("labels over the image", "JPEG"))
    return [(what, data_uri(picture, kind)) for (what, kind), picture in zip(kinds, thumbnails, strict=True)]


def _ids(result: dict[str, Any]) -> tuple[list[str], list[tuple[int, str, list[tuple[float, int]]]]]:
    """Splits with labels, and of every stored id what it means and its (percent, pixels) in each of them."""
    splits = {split: each for split, each in result["splits"].items() if each["pixels"]}
    rows = []
    for i in sorted({int(i) for each in splits.values() for i in each["ids"]}):
        pixels = [(each["ids"].get(str(i), 0), each["pixels"]) for each in splits.values()]
        values = [(100 * count / total if count else math.nan, count) for count, total in pixels]
        rows.append((i, result["ids"].get(str(i), "illegal"), values))
    return list(splits), rows

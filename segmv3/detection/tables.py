"""Detection in tables for the terminal: the nets of the paper, and scores."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from rich import box
from rich.table import Table

from segmv3.models.count import gmacs, parameters
from segmv3.models.detector import ObjectDetector
from segmv3.models.nets import Detector, net_from_dict
from segmv3.records import packaged

_CLASSES, _SIZE = 90, (320, 320)  # of COCO, without the background


class Row(NamedTuple):
    """A net of the paper's table, with its size and cost as counted here."""

    name: str
    parameters: int
    gmacs: float
    theirs: dict[str, float]
    """The published parameters in millions, and multiply-adds in billions."""


def count_detectors() -> Iterator[Row]:
    """The detectors of the paper's table, with 90 classes at 320 x 320, counted now."""
    for name, row in packaged("segmv3.detection", "detection.toml").items():
        with torch.device("meta"):
            net = ObjectDetector(cast(Detector, net_from_dict(row["net"])), _CLASSES)
        theirs = {key: row[key] for key in ("parameters", "gmacs")}
        yield Row(name, parameters(net), gmacs(net, _SIZE), theirs)


def detectors_table() -> Table:
    """What the paper's detectors take, and what these nets take here."""
    caption = "90 classes at 320 x 320, one multiply-add counted once"
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for column in ("net", "parameters", "published", "GMACs", "published"):
        table.add_column(column, justify="left" if column == "net" else "right")
    for name, size, cost, theirs in count_detectors():
        cells = (f"{size:,}", f"{theirs['parameters']:.2f}M", f"{cost:.3f}", f"{theirs['gmacs']:.2f}")
        table.add_row(name, *cells)
    return table


def scores_table(scores: dict[str, Any]) -> Table:
    """Average precision of each class, and its IoU where there are areas, in percent; a dash where there is nothing."""
    areas, table = scores.get("areas"), Table("class", box=box.SIMPLE)
    for column in ("mAP", "mAP50", "boxes", *(["IoU of the area"] if areas else [])):
        table.add_column(column, justify="right")
    for row in scores["classes"]:
        cells = percent(row["map"]), percent(row["map50"]), f"{row['boxes']:,}"
        table.add_row(row["name"], *cells, *([percent(areas[row["name"]])] if areas else []))
    return table


def percent(value: float | None) -> str:
    """A share for people, "-" where there is none."""
    return "-" if value is None else f"{value:.2f}"


def summary(scores: dict[str, Any]) -> str:
    """One line with the scores and what they depend on."""
    count = f"{scores['images']:,} images"
    if scores["images"] < scores["images_in_split"]:
        count = f"{scores['images']:,} of {scores['images_in_split']:,} images, evenly spaced,"
    sizes = ", ".join(f"{name} {percent(scores[f'map_{name}'])}" for name in ("small", "medium", "large"))
    areas = f"mIoU of the areas {percent(scores['miou'])} %; " if "miou" in scores else ""
    whole = f"mAP {percent(scores['map'])} %, mAP50 {percent(scores['map50'])} %, mAP75 {percent(scores['map75'])} %"
    return (
        f"{areas}{whole} on {count} of {scores['dataset']} {scores['split']}, seen at "
        f"{' x '.join(map(str, scores['size']))}; mAP of objects by size: {sizes}"
    )

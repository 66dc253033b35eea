"""Results as tables for the terminal."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table

from segmv3.models.count import NetFacts
from segmv3.models.family import Counted


def scores_table(scores: dict[str, Any]) -> Table:
    """Per-class scores in percent, as `segmv3.evaluation.scores` returns them."""
    table = Table()
    table.add_column("class")
    for column in ("IoU", "accuracy", "share"):
        table.add_column(column, justify="right")
    for row in scores["classes"]:
        table.add_row(row["name"], _percent(row["iou"]), _percent(row["accuracy"]), _percent(row["share"]))
    table.add_section()
    table.add_row("mean", _percent(scores["miou"]), _percent(scores["mean_accuracy"]), "")
    return table


def summary(scores: dict[str, Any]) -> str:
    """One line with the score and everything it depends on."""
    count = f"{scores['images']:,} images"
    if scores["images"] < scores["images_in_split"]:
        count = f"the first {scores['images']:,} of {scores['images_in_split']:,} images"
    mode = f"scales {', '.join(f'{s:g}' for s in scores['scales'])}" if len(scores["scales"]) > 1 else "single scale"
    text = (
        f"mIoU {_percent(scores['miou'])} %, mean accuracy {_percent(scores['mean_accuracy'])} %, "
        f"pixel accuracy {_percent(scores['pixel_accuracy'])} % on {count} of {scores['dataset']} {scores['split']}, "
        f"{mode}{' + flip' if scores['flip'] else ''}"
    )
    if scores["absent"]:
        text += f"; left out of the mean as absent: {', '.join(scores['absent'])}"
    return text


def classification_summary(scores: dict[str, Any]) -> str:
    """One line with the accuracies, as `segmv3.classification.accuracies` returns them, and what they depend on."""
    count = f"{scores['images']:,} images"
    if scores["images"] < scores["images_in_split"]:
        count = f"{scores['images']:,} of {scores['images_in_split']:,} images, evenly spaced,"
    top5 = f", top-5 {scores['top5']:.2f} %" if scores["top5"] is not None else ""
    crop = " x ".join(map(str, scores["crop_size"]))
    return (
        f"top-1 {scores['top1']:.2f} %{top5} on {count} of {scores['dataset']} {scores['split']}, "
        f"middle {crop} of a shorter side of {scores['resize']} ({scores['interpolation']})"
    )


def models_table(nets: list[NetFacts]) -> Table:
    """The named nets, counted with 19 classes at 1024 x 2048."""
    table = Table(caption="19 classes; multiply-adds at 1024x2048, one counted once", caption_justify="left")
    for column in ("net", "parameters", "GMACs", "output stride", "taps"):
        table.add_column(column, justify="left" if column in ("net", "taps") else "right")
    for net in nets:
        table.add_row(net.name, f"{net.parameters:,}", f"{net.gmacs:.2f}", str(net.output_stride), net.taps)
    return table


def family_table(nets: Iterable[Counted]) -> Table:
    """Every net of the references with its cost and its authors' accuracy."""
    table = Table(
        box=box.SIMPLE,
        caption="1000 classes for classifiers, 19 for segmentation nets; one multiply-add counted once. Published: by "
        "the authors in brackets, not measured here; top-1 / top-5 on ImageNet val, mIoU on Cityscapes val.",
        caption_justify="left",
    )
    for column in ("net", "parameters", "MMACs 224", "GMACs 1024x2048", "published"):
        wraps = column == "published"
        table.add_column(column, justify="left" if wraps or column == "net" else "right", no_wrap=not wraps)
    for net in nets:
        cost = (f"{net.parameters:,}", f"{net.mmacs:,.2f}", f"{net.gmacs:,.2f}")
        table.add_row(net.member.name, *cost, net.member.published)
    return table


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"

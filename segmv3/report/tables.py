"""Results as tables for the terminal."""

from collections.abc import Sequence
from math import isnan
from typing import Any

from rich import box
from rich.table import Table

from segmv3.data.listing import count_of
from segmv3.models.count import NetFacts
from segmv3.models.family import Counted
from segmv3.results.result import CategoryScore, City, Result


def scores_table(scores: Result) -> Table:
    """Per-class scores in percent; a dash where one is not defined."""
    extra = [(key, title) for key, title in _EXTRA_COLUMNS if getattr(scores.classes[0], key) is not None]
    shown = f"The net saw images {shown_at(scores)}" if shown_at(scores) else None
    table = _numbers("class", "IoU", "accuracy", "share", *(title for _, title in extra), caption=shown)
    for row in scores.classes:
        missing = "absent" if isnan(row.iou or 0) else "-"
        cells = (_percent(row.iou), _percent(row.accuracy), _percent(row.share))
        table.add_row(row.name, *cells, *(_percent(getattr(row, key), missing) for key, _ in extra))
    table.add_section()
    means = (_percent(getattr(scores, f"mean_{key}"), "-") for key, _ in extra)
    cells = (_percent(scores.miou), _percent(scores.mean_accuracy), "")
    table.add_row(f"mean{over(scores, names=False)}", *cells, *means)
    return table


_EXTRA_COLUMNS = (("iiou", "iIoU"), ("boundary_iou", "boundary IoU"), ("boundary_f_score", "boundary F"))


def categories_table(scores: Result) -> Table:
    """Scores of the categories of Cityscapes, for a result that has them."""
    rows = scores.categories or ()
    weighted = any(row.iiou is not None for row in rows)
    table = _numbers("category", "IoU", *(("iIoU",) if weighted else ()))
    for row in (*rows, CategoryScore("mean", scores.category_miou, scores.category_mean_iiou)):
        if row.name == "mean":
            table.add_section()
        table.add_row(row.name, _percent(row.iou), *((_percent(row.iiou, "-"),) if weighted else ()))
    return table


def cities_table(cities: Sequence[City]) -> Table:
    """Mean scores of each city of Cityscapes, worst first."""
    means = (
        ("miou", "mIoU"),
        ("category_miou", "category mIoU"),
        ("frequency_weighted_iou", "weighted IoU"),
        ("mean_accuracy", "mean accuracy"),
        ("pixel_accuracy", "pixel accuracy"),
        ("mean_boundary_iou", "boundary IoU"),
        ("mean_boundary_f_score", "boundary F"),
    )
    shown = [(key, title) for key, title in means if getattr(cities[0], key) is not None]
    caption = "Classes that do not occur in a city are left out of its means; weighted: by frequency"
    table = _numbers("city", "images", *(title for _, title in shown), caption=caption)
    table.columns[0].no_wrap = True
    for city in sorted(cities, key=lambda city: (isnan(city.miou), city.miou)):
        table.add_row(city.name, f"{city.images:,}", *(_percent(getattr(city, key)) for key, _ in shown))
    return table


def summary(scores: Result) -> list[str]:
    """The score and everything it depends on in one line; what else was measured in further ones."""
    text = (
        f"mIoU {_percent(scores.miou)} %{over(scores)}{interval(scores)}, "
        f"mean accuracy {_percent(scores.mean_accuracy)} %, pixel accuracy {_percent(scores.pixel_accuracy)} % "
        f"on {images(scores)} of {scores.dataset} {scores.split}, {size(scores)}, {mode(scores)}"
    )
    return [text, *_further_scores(scores)]


def images(scores: Result) -> str:
    """`500 images`, `1 image`, or `the first 20 of 500 images`."""
    if scores.images < (scores.images_in_split or 0):
        return f"the first {scores.images:,} of {scores.images_in_split:,} images"
    return count_of(scores.images, "image")


def over(scores: Result, *, names: bool = True) -> str:
    """` (mean over 17 of 19 classes: train, bus have no pixel in val)`; nothing when all classes occur.

    Args:
        scores: what was measured.
        names: say which classes; else the counts alone, ` over 17 of 19`.
    """
    if not scores.absent:
        return ""
    counts = f" over {len(scores.classes) - len(scores.absent)} of {len(scores.classes)}"
    have = "has" if len(scores.absent) == 1 else "have"
    text = f" (mean{counts} classes: {', '.join(scores.absent)} {have} no pixel in {scores.split})"
    return text if names else counts


def interval(scores: Result) -> str:
    """` (95 % interval of the images: 57.9 to 64.0)`; nothing for too few images."""
    bounds = scores.miou_interval
    return f" (95 % interval of the images: {bounds[0]:.1f} to {bounds[1]:.1f})" if bounds else ""


def size(scores: Result) -> str:
    """Height x width of the ground truth, `1024 x 2048`."""
    return " x ".join(map(str, scores.size)) if scores.size else "images of several sizes"


def mode(scores: Result) -> str:
    """How the net was run: `single scale`, or all scales, or the windows; at another size, in another runtime."""
    scales = scores.scales or (1.0,)
    text = f"scales {', '.join(f'{s:g}' for s in scales)}" if len(scales) > 1 else "single scale"
    if scores.sliding_window and scores.stride:
        text = "windows of {} x {}, stride {} x {}".format(*scores.sliding_window, *scores.stride)
    text += " + flip" if scores.flip else ""
    text += f", net {shown_at(scores)}" if shown_at(scores) else ""
    return text + (f", {scores.runtime} {scores.precision}" if scores.runtime else "")


def shown_at(scores: Result) -> str:
    """The size that the net saw images at: `at 512 x 1024 (scale 0.5)`; nothing where it was their own."""
    size, scale = scores.input_size, scores.input_scale
    share = f"scale {scale:g}" if scale else ""
    if size:
        return f"at {size[0]} x {size[1]}" + (f" ({share})" if share else "")
    return f"at {share}" if share else ""


def _further_scores(scores: Result) -> list[str]:
    """A line for the means that only some data sets or flags have, and one for the Cityscapes script's verdict."""
    names = (
        (scores.frequency_weighted_iou, "frequency-weighted IoU"),
        (scores.category_miou, "category mIoU"),
        (scores.mean_iiou, "iIoU"),
        (scores.category_mean_iiou, "category iIoU"),
        (scores.mean_boundary_iou, "boundary IoU"),
        (scores.mean_boundary_f_score, "boundary F-score"),
    )
    further = [f"{name} {value:.2f} %" for value, name in names if value is not None and not isnan(value)]
    lines = [", ".join(further)] if further else []
    if scores.mean_iiou is not None and isnan(scores.mean_iiou):
        lines.append("iIoU is not available: it needs *_gtFine_instanceIds.png beside every label, with instances")
    if verdict := scores.official:
        lines.append(
            f"{verdict['script']} agrees: {verdict['compared']} IoU, largest difference "
            f"{verdict['largest_difference']:.1e} points; confusion matrix equal in all {verdict['pixels']:,} pixels"
        )
    return lines


def classification_summary(scores: dict[str, Any]) -> str:
    """One line with the accuracies, as `segmv3.imagenet.scoring.accuracies` returns them, and what they depend on."""
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


def family_tables(nets: Sequence[Counted]) -> tuple[Table, Table]:
    """Every net of the references with its cost, and those with an accuracy of their authors."""
    caption = "1000 classes for classifiers, 19 for segmentation nets; one multiply-add counted once."
    costs = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for column in ("net", "parameters", "MMACs 224", "GMACs 1024x2048"):
        costs.add_column(column, justify="left" if column == "net" else "right", no_wrap=True)
    for net in nets:
        costs.add_row(net.name, f"{net.parameters:,}", f"{net.mmacs:,.2f}", f"{net.gmacs:,.2f}")
    caption = "By the authors in brackets, not measured here: top-1 / top-5 on ImageNet val, mIoU on Cityscapes val."
    published = Table("net", "published", box=box.SIMPLE, caption=caption, caption_justify="left")
    published.columns[0].no_wrap = True
    for net in nets:
        if net.published:
            published.add_row(net.name, net.published)
    return costs, published


def _numbers(first: str, *others: str, caption: str | None = None) -> Table:
    """A table of words in the first column and numbers in the others."""
    table = Table(first, caption=caption, caption_justify="left")
    for column in others:
        table.add_column(column, justify="right")
    return table


def _percent(value: float | None, missing: str = "absent") -> str:
    return missing if value is None or isnan(value) else f"{value:.2f}"

"""The page of a run: `report.html`, and the light form of its figures in `figures/`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from segmv3.data.listing import count_of
from segmv3.files import make_folder
from segmv3.images import UInt8Array, write_png
from segmv3.labels import Classes
from segmv3.report.html import Chart, data_uri, write_page
from segmv3.report.plots import confusion, curves, iou_bars, number, row_percent
from segmv3.report.samples import Sample, cells, present, sample_panel

MAX_SAMPLES = 12
"""Samples shown; the page says when there were more. It keeps the page below 5 MB."""

_MAX_CONFUSIONS = 6
_MAX_HARDEST = 20


def write_report(
    run: Path,
    *,
    title: str,
    facts: dict[str, str],
    log: list[dict],
    scores: dict,
    classes: Classes,
    samples: list[Sample],
) -> Path:
    """Write the report of a run: `run/report.html` and `run/figures/*.png`, each complete or not at all.

    Figures that the numbers do not allow (no scores, no samples) are left out, and removed if an earlier
    report wrote them.

    Args:
        run: the folder of the run.
        title: what was trained on what.
        facts: what to show in the header table, in this order.
        log: parsed lines of `log.jsonl`.
        scores: as written by the evaluation, in percent; {} when there was none.
        classes: their names and colours.
        samples: pictures to show; the first `MAX_SAMPLES` are.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = make_folder(run / "figures")
    values: dict[str, Any] = {
        "title": title,
        "facts": facts,
        "curves": Chart(figures / "curves.png", lambda theme: curves(log, theme)),
        "metric_name": "mIoU",
        "metrics": [],
        "conditions": "",
        "scores": scores,
        "samples": [],
        "total": len(samples),
    }
    if scores:
        values |= _scored(scores, classes, figures)
    else:
        (figures / "iou.png").unlink(missing_ok=True)
        (figures / "confusion.png").unlink(missing_ok=True)
    if samples:
        shown = samples[:MAX_SAMPLES]
        write_png(figures / "samples.png", sample_panel(shown, classes))
        values["samples"] = [
            (sample.name, _pixel_accuracy(sample, classes), cells(sample, classes)) for sample in shown
        ]
        values["present"] = classes.key(present(shown, classes))
    else:
        (figures / "samples.png").unlink(missing_ok=True)
    return write_page(run / "report.html", "run.html", **values)


def _scored(scores: dict, classes: Classes, figures: Path) -> dict[str, Any]:
    named = (("mIoU", "miou"), ("mean accuracy", "mean_accuracy"), ("pixel accuracy", "pixel_accuracy"))
    return {
        "metrics": [(name, scores.get(key)) for name, key in named],
        "conditions": _conditions(scores),
        "colors": dict(zip(classes.names, classes.colors, strict=True)),
        "bars": Chart(figures / "iou.png", lambda theme: iou_bars(scores, classes, theme)),
        "matrix": Chart(figures / "confusion.png", lambda theme: confusion(scores, theme)),
        "worst": _worst_confusions(scores),
    }


def write_classification_report(run: Path, *, title: str, facts: dict[str, str], log: list[dict], scores: dict) -> Path:
    """Write the report of a classification run: `run/report.html` and `run/figures/curves.png`.

    Args:
        run: the folder of the run.
        title: as for `write_report`.
        facts: as for `write_report`.
        log: as for `write_report`.
        scores: as `segmv3.imagenet.scoring.accuracies` returns them.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    classes = scores["classes"]
    hardest = sorted(classes, key=lambda row: math.inf if row["top1"] is None else row["top1"])[:_MAX_HARDEST]
    crop = f"middle {' x '.join(map(str, scores['crop_size']))} of a shorter side of {scores['resize']}"
    named = (("top-1", "top1"), ("top-5", "top5"))
    conditions = (scores["split"], count_of(scores["images"], "image"), f"{len(classes):,} classes", crop)
    figures = make_folder(run / "figures")
    return write_page(
        run / "report.html",
        "classification.html",
        title=title,
        facts=facts,
        curves=Chart(figures / "curves.png", lambda theme: curves(log, theme, ("top1", "Top-1"))),
        metric_name="top-1",
        conditions=" · ".join(conditions),
        metrics=[(name, scores[key]) for name, key in named if scores[key] is not None],
        hardest=hardest,
        more=len(classes) > len(hardest),
        five=any(row["top5"] is not None for row in hardest),
    )


def write_detection_report(
    run: Path,
    *,
    title: str,
    facts: dict[str, str],
    log: list[dict],
    metric: tuple[str, str],
    scores: dict,
    pictures: list[tuple[UInt8Array, UInt8Array]],
) -> Path:
    """Write the report of a detection run: `run/report.html` and `run/figures/curves.png`.

    Args:
        run: the folder of the run.
        title: as for `write_report`.
        facts: as for `write_report`.
        log: as for `write_report`.
        metric: the score that chose the weights, by its key and for people.
        scores: as `segmv3.detection.scoring.average_precisions` returns them, and `area_scores` of a net with areas.
        pictures: images with their true boxes, and with those that were found.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    named = [("mAP", "map"), ("mAP at 50 % overlap", "map50")]
    named += [("mIoU of the areas", "miou") if "miou" in scores else ("mAP at 75 % overlap", "map75")]
    size = f"seen at {' x '.join(map(str, scores['size']))}"
    conditions = (scores["split"], count_of(scores["images"], "image"), f"{len(scores['classes']):,} classes", size)
    figures = make_folder(run / "figures")
    return write_page(
        run / "report.html",
        "detection.html",
        title=title,
        facts=facts,
        curves=Chart(figures / "curves.png", lambda theme: curves(log, theme, metric)),
        metric_name=metric[1],
        conditions=" · ".join(conditions),
        metrics=[(name, scores[key]) for name, key in named if scores[key] is not None],
        classes=scores["classes"],
        areas=scores.get("areas"),
        samples=[[("truth", data_uri(a, "JPEG")), ("prediction", data_uri(b, "JPEG"))] for a, b in pictures],
    )


def _conditions(scores: dict) -> str:
    """How the scores were measured: "val · 12 images · single scale · 19 classes, absent: train"."""
    images, classes, absent = scores.get("images"), len(scores["classes"]), scores.get("absent") or []
    scales = [number(scale) for scale in scores.get("scales") or [1.0]]
    text = f"scale{'' if len(scales) == 1 else 's'} " + ", ".join(f"{scale:g}" for scale in scales)
    parts = [
        str(scores.get("split", "")),
        count_of(images, "image") if isinstance(images, int) else "",
        ("single scale" if scales == [1.0] else text) + (" + flip" if scores.get("flip") else ""),
        count_of(classes, "class", "classes"),
        f"{len(absent)} absent and left out of the means: {', '.join(absent)}" if absent else "",
    ]
    return " · ".join(filter(None, parts))


def _worst_confusions(scores: dict) -> list[tuple[str, str, float, float]]:
    """(truth, taken for, percent of all errors, percent of the class) of the most frequent confusions."""
    names = [row["name"] for row in scores["classes"]]
    counts = np.array(scores["confusion_matrix"], np.int64)
    share = row_percent(scores["confusion_matrix"])
    np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    return [
        (names[truth], names[taken], 100 * counts[truth, taken] / counts.sum(), share[truth, taken])
        for truth, taken in (divmod(int(flat), len(names)) for flat in largest)
        if counts[truth, taken] > 0
    ]


def _pixel_accuracy(sample: Sample, classes: Classes) -> float:
    labelled = sample.truth < len(classes)
    return float((sample.truth == sample.prediction)[labelled].mean()) * 100 if labelled.any() else math.nan

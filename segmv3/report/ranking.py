"""The page of an evaluation: intervals of the classes, the worst images, and labels that look wrong.

`evaluation.html` needs no other file, no script and no network, like the report of a run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, Classes, Color
from segmv3.media.draw import WRONG, draw_errors, occurring
from segmv3.report.page import (
    PAGE_TEMPLATE,
    cells_of,
    data_uri,
    metric_of,
    percent_of,
    safe,
    share_of,
    style_of,
    swatch,
)
from segmv3.report.plots import Sample, number, thumbnail_size, thumbnails
from segmv3.report.tables import images, mode, over, size
from segmv3.results.ranking import RankedImage, Suspect, label_suspects, ranking, worst_by_class
from segmv3.results.result import ClassScore, Result
from segmv3.results.uncertainty import FEWEST_IMAGES, bootstrap_iou

PAGE = "evaluation.html"
_WORST = 12  # images of the ranking
_OF_CLASS = 3  # images of each class
_SUSPECTS = 12
_LOWEST = 3  # classes named below an image
_FOUND: Color = (58, 130, 246)
_EXTRA: Color = (245, 176, 40)

SamplesOf = Callable[[Sequence[str]], Iterable[Sample]]
"""The images of these names, in this order, with labels and predictions."""


@dataclass(frozen=True)
class _Choice:
    """What the page shows."""

    worst: list[RankedImage]
    by_class: dict[str, list[tuple[str, float]]]
    suspects: list[Suspect]

    @property
    def names(self) -> list[str]:
        """Every image once."""
        of_classes = (name for rows in self.by_class.values() for name, _ in rows)
        return list(dict.fromkeys([*(i.name for i in self.worst), *of_classes, *(s.name for s in self.suspects)]))


@dataclass
class _Pictures:
    """Finished parts of the page, so that no image is kept at its own size."""

    worst: dict[str, str]
    by_class: dict[tuple[str, str], str]
    """By (class, image)."""
    suspects: dict[Suspect, str]
    present: set[int]
    """Train ids that occur in the pictures."""


def write_evaluation_page(folder: Path, result: Result, classes: Classes, samples_of: SamplesOf) -> Path:
    """Write `folder/evaluation.html`, complete or not at all.

    Args:
        folder: where it goes; made where it is missing.
        result: what the evaluation found.
        classes: those of the data set.
        samples_of: asked once, for the images shown.

    Returns:
        The path of the page.

    Raises:
        OutputError: it cannot be written.
    """
    choice = _Choice(
        ranking(result)[:_WORST], worst_by_class(result, count=_OF_CLASS), label_suspects(result, count=_SUSPECTS)
    )
    pictures = _draw(choice, classes, samples_of)
    body = [
        _header(result),
        _classes_section(result, classes),
        _worst_section(choice, pictures, classes, len(result.names)),
        _suspects_section(choice, pictures, classes),
        _by_class_section(choice, pictures, classes),
    ]
    title = f"{result.dataset} {result.split}: evaluation"
    content = PAGE_TEMPLATE.format(title=safe(title), style=style_of() + _RULES, body="\n".join(body))
    page = make_folder(folder) / PAGE
    write_bytes(page, content.replace(_FOOTER, "Written by segmv3.").encode(errors="replace"))
    return page


# --- pictures ---


def _draw(choice: _Choice, classes: Classes, samples_of: SamplesOf) -> _Pictures:
    worst = {image.name for image in choice.worst}
    pictures = _Pictures({}, {}, {}, set())
    for large in samples_of(choice.names):
        sample = _shrunk(large)
        if sample.name in worst:
            pictures.worst[sample.name] = _four(sample, classes, pictures.present)
        for place, name in enumerate(classes.names):
            if sample.name in (image for image, _ in choice.by_class[name]):
                pictures.by_class[name, sample.name] = data_uri(class_picture(sample, place), "JPEG")
        for suspect in (each for each in choice.suspects if each.name == sample.name):
            pictures.suspects[suspect] = _suspect_cells(sample, suspect, classes, pictures.present)
    return pictures


def _shrunk(sample: Sample) -> Sample:
    """At the size of a thumbnail."""
    small = thumbnail_size(*sample.image.shape[:2])
    shrinks = small[0] <= sample.image.shape[1]
    return replace(
        sample,
        image=cv2.resize(sample.image, small, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST),
        truth=cv2.resize(sample.truth, small, interpolation=cv2.INTER_NEAREST),
        prediction=cv2.resize(sample.prediction, small, interpolation=cv2.INTER_NEAREST),
    )


def class_picture(sample: Sample, place: int) -> UInt8Array:
    """Where one class (train id `place`) was found, missed, and seen where it is not, on the image in dim grey."""
    truth, predicted = sample.truth == place, sample.prediction == place
    return _marked(sample, {_FOUND: truth & predicted, WRONG: truth & ~predicted, _EXTRA: predicted & ~truth})


def _marked(sample: Sample, masks: dict[Color, NDArray[np.bool_]]) -> UInt8Array:
    """The image in dim grey, ignored pixels hatched, with masks in colours."""
    picture = draw_errors(sample.image, sample.truth, sample.truth)
    labelled = sample.truth != IGNORE
    for color, mask in masks.items():
        picture[mask & labelled] = color
    return picture


def _four(sample: Sample, classes: Classes, present: set[int]) -> str:
    pictures = thumbnails(sample, classes)
    present |= occurring(sample.truth, classes) | occurring(sample.prediction, classes)
    return _figures(
        sample,
        [
            ("image", pictures.image, "JPEG"),
            ("truth", pictures.truth, "PNG"),
            ("prediction", pictures.prediction, "PNG"),
            ("errors", pictures.errors, "JPEG"),
        ],
    )


def _suspect_cells(sample: Sample, suspect: Suspect, classes: Classes, present: set[int]) -> str:
    pictures = thumbnails(sample, classes)
    present |= occurring(sample.truth, classes) | occurring(sample.prediction, classes)
    truth, predicted = classes.names.index(suspect.truth), classes.names.index(suspect.predicted)
    marked = _marked(sample, {WRONG: (sample.truth == truth) & (sample.prediction == predicted)})
    return _figures(
        sample,
        [
            ("image", pictures.image, "JPEG"),
            ("truth", pictures.truth, "PNG"),
            ("prediction", pictures.prediction, "PNG"),
            ("in doubt", marked, "JPEG"),
        ],
    )


def _figures(sample: Sample, pictures: list[tuple[str, UInt8Array, str]]) -> str:
    cells = "".join(
        f"<figure><figcaption>{what}</figcaption>"
        f"<img src='{data_uri(pixels, kind)}' alt='{what}: {safe(sample.name)}'></figure>"
        for what, pixels, kind in pictures
    )
    return f"<div class='cells'>{cells}</div>"


# --- sections ---


def _header(result: Result) -> str:
    low, high = result.miou_interval or (None, None)
    interval = "" if low is None else f"<br>95 % interval of the images: {low:.1f} to {high:.1f}"
    metrics = (
        metric_of(f"mIoU{interval}", result.miou),
        metric_of("mean accuracy", result.mean_accuracy),
        metric_of("pixel accuracy", result.pixel_accuracy),
    )
    conditions = [images(result), size(result), mode(result), f"{len(result.classes)} classes"]
    if result.absent:
        conditions.append(f"no pixel of {', '.join(result.absent)}: the mean is{over(result, names=False)} classes")
    return (
        f"<header><p class='eyebrow'>segmv3 evaluation</p><h1>{safe(result.dataset)} {safe(result.split)}</h1>"
        f"<p class='conditions'>{safe(' · '.join(conditions))}</p>"
        f"<p class='conditions'>{safe(result.weights)}<br>SHA-256 {safe(result.weights_sha256)}</p>"
        f"<div class='metrics'>{''.join(metrics)}</div></header>"
    )


def _classes_section(result: Result, classes: Classes) -> str:
    present = (result.counts.truth > 0).sum(0).tolist()
    rows = "".join(
        _class_row(*each)
        for each in zip(result.classes, bootstrap_iou(result.counts), present, classes.colors, strict=True)
    )
    return (
        "<section><div class='card'><h2>Classes <small>percent</small></h2><div class='scroll'>"
        "<table class='numbers intervals'><thead><tr><th>class</th><td class='track'></td><td>IoU</td>"
        "<td>95 % interval</td><td class='more'>accuracy</td><td class='more'>share</td><td>images</td></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        "<p class='note'>The interval says how much the IoU depends on which images were labelled: the middle 95 % "
        "over 1,000 resamples of the images; none is given for a class in fewer than "
        f"{FEWEST_IMAGES} images. <span class='more'>Share: of the labelled pixels. </span>Images: those whose labels "
        "hold the class.</p></div></section>"
    )


def _class_row(row: ClassScore, interval: tuple[float, float], images: int, color: Color) -> str:
    iou, (low, high) = number(row.iou), interval
    score, bounds, track, kind = "absent", "", "", " class='absent'"
    if not np.isnan(iou):
        score, kind = percent_of(iou), ""
        track = f"<b style='left:{iou:.2f}%'></b>"
        if images >= FEWEST_IMAGES:
            bounds = f"{low:.1f} to {high:.1f}"
            track = f"<i style='left:{low:.2f}%;width:{max(high - low, 0.4):.2f}%'></i>{track}"
    accuracy, share = percent_of(number(row.accuracy)), share_of(number(row.share))
    return (
        f"<tr{kind}><th>{swatch(color)}{safe(row.name)}</th><td class='track'><div>{track}</div></td>"
        f"{cells_of((score, bounds))}<td class='more'>{accuracy}</td><td class='more'>{share}</td>"
        f"<td>{images:,}</td></tr>"
    )


def _worst_section(choice: _Choice, pictures: _Pictures, classes: Classes, total: int) -> str:
    samples = "".join(
        f"<div class='sample'><p><b>{safe(image.name)}</b> mIoU {percent_of(image.miou)} "
        f"<span class='muted'>{safe(_lowest(image, classes))}</span></p>{pictures.worst[image.name]}</div>"
        for image in choice.worst
    )
    what = f"The {len(choice.worst)} lowest of {total:,}. " if total > len(choice.worst) else ""
    note = f"{what}mIoU of an image: the mean over the classes in its labels."
    return (
        f"<section><div class='card'><h2>Worst images</h2><p class='note'>{note}</p>{samples}"
        f"{_legend(pictures, classes, 'wrong')}</div></section>"
    )


def _lowest(image: RankedImage, classes: Classes) -> str:
    rows = sorted((float(iou), name) for iou, name in zip(image.iou, classes.names, strict=True) if not np.isnan(iou))
    return "lowest: " + ", ".join(f"{name} {iou:.1f}" for iou, name in rows[:_LOWEST])


def _legend(pictures: _Pictures, classes: Classes, red: str) -> str:
    chips = "".join(f"<li>{swatch(classes.colors[i])}{safe(classes.names[i])}</li>" for i in sorted(pictures.present))
    errors = f"<li><i class='swatch wrong-pixel'></i>{red}</li><li><i class='swatch hatched'></i>ignored</li>"
    return f"<ul class='legend'>{chips}{errors}</ul>"


def _by_class_section(choice: _Choice, pictures: _Pictures, classes: Classes) -> str:
    rows = "".join(
        f"<div class='sample'><p>{swatch(color)}<b>{safe(name)}</b></p><div class='cells three'>"
        + "".join(
            f"<figure><figcaption>IoU {percent_of(iou)} · {safe(image)}</figcaption>"
            f"<img src='{pictures.by_class[name, image]}' alt='{safe(name)} in {safe(image)}'></figure>"
            for image, iou in choice.by_class[name]
        )
        + "</div></div>"
        for name, color in zip(classes.names, classes.colors, strict=True)
        if choice.by_class[name]
    )
    chips = "".join(
        f"<li>{swatch(color)}{what}</li>"
        for color, what in ((_FOUND, "found"), (WRONG, "missed"), (_EXTRA, "seen where it is not"))
    )
    return (
        "<section><div class='card'><h2>Worst images of each class</h2>"
        "<p class='note'>Only images in which the class covers a thousandth of the labelled pixels.</p>"
        f"<ul class='legend key'>{chips}<li><i class='swatch hatched'></i>ignored</li></ul>{rows}</div></section>"
    )


def _suspects_section(choice: _Choice, pictures: _Pictures, classes: Classes) -> str:
    if not choice.suspects:
        note = "None: nowhere is a class taken for another one that it is hardly ever taken for elsewhere."
        return f"<section><div class='card'><h2>Labels in doubt</h2><p class='note'>{note}</p></div></section>"
    samples = "".join(
        f"<div class='sample'><p><b>{safe(suspect.name)}</b> labelled {safe(suspect.truth)}, "
        f"predicted {safe(suspect.predicted)} <span class='muted'>{suspect.share:.0f} % of its {safe(suspect.truth)} "
        f"({suspect.pixels:,} pixels), in other images {suspect.elsewhere:.1f} %</span></p>"
        f"{pictures.suspects[suspect]}</div>"
        for suspect in choice.suspects
    )
    return (
        "<section><div class='card'><h2>Labels in doubt</h2><p class='note'>The net takes most of a class for another "
        "one here, and hardly ever elsewhere: it is fooled, or the label is wrong. Look before you change one; the "
        f"pixels are red.</p>{samples}{_legend(pictures, classes, 'in doubt')}</div></section>"
    )


_FOOTER = "Written by segmv3. The figures are also in <code>figures/</code>."

_RULES = """
.metrics{align-items:start}
.intervals td:not(.track){white-space:nowrap}
.intervals .track{width:34%;min-width:120px;padding-left:14px;vertical-align:middle}
.track div{position:relative;height:14px;background:linear-gradient(var(--line),var(--line)) center/100% 1px no-repeat}
.track i{position:absolute;top:4px;height:6px;border-radius:3px;background:var(--accent);opacity:.38}
.track b{position:absolute;top:1px;width:3px;height:12px;margin-left:-1.5px;border-radius:2px;background:var(--accent)}
.scroll+.note{margin:12px 0 0}
.three{grid-template-columns:repeat(3,minmax(0,1fr))}
.cells figcaption{overflow-wrap:anywhere}
.key{border:0;padding:0 0 18px}
.sample p .swatch{margin-right:7px}
@media (max-width:620px){
 .metric span{overflow-wrap:anywhere}
 .intervals .track,.more{display:none}
 .cells.three{grid-template-columns:minmax(0,1fr)}
}
"""

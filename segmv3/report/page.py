"""The page of a run: `report.html`, and the light form of its figures in `figures/`."""

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from segmv3.errors import printable
from segmv3.files import make_folder
from segmv3.images import write_png
from segmv3.labels import Classes, Color
from segmv3.report.html import Chart as Chart
from segmv3.report.html import count, write_page
from segmv3.report.html import data_uri as data_uri
from segmv3.report.plots import (
    DARK,
    LIGHT,
    Theme,
    confusion,
    curves,
    iou_bars,
    number,
    row_percent,
)
from segmv3.report.samples import Sample, present, sample_panel, thumbnails

MAX_SAMPLES = 12
"""Samples shown; the page says when there were more. It keeps the page below 5 MB."""

_MAX_CONFUSIONS = 6
_MAX_HARDEST = 20
_NONE = "–"  # noqa: RUF001 (an en dash stands for "no number")


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
        named = (("mIoU", "miou"), ("mean accuracy", "mean_accuracy"), ("pixel accuracy", "pixel_accuracy"))
        values |= {
            "metrics": [(name, scores.get(key)) for name, key in named],
            "conditions": _conditions(scores),
            "colors": dict(zip(classes.names, classes.colors, strict=True)),
            "bars": Chart(figures / "iou.png", lambda theme: iou_bars(scores, classes, theme)),
            "matrix": Chart(figures / "confusion.png", lambda theme: confusion(scores, theme)),
            "worst": _worst_confusions(scores),
        }
    else:
        _remove(figures / "iou.png", figures / "confusion.png")
    if samples:
        shown = samples[:MAX_SAMPLES]
        write_png(figures / "samples.png", sample_panel(shown, classes))
        values["samples"] = [_sample(sample, classes) for sample in shown]
        values["present"] = [(classes.names[i], classes.colors[i]) for i in sorted(present(shown, classes))]
    else:
        _remove(figures / "samples.png")
    return write_page(run / "report.html", "run.html", **values)


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
    conditions = (scores["split"], count(scores["images"], "image"), f"{len(classes):,} classes", crop)
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


def _conditions(scores: dict) -> str:
    """How the scores were measured: "val · 12 images · single scale · 19 classes, absent: train"."""
    images, classes, absent = scores.get("images"), len(scores["classes"]), scores.get("absent") or []
    parts = [
        str(scores.get("split", "")),
        count(images, "image") if isinstance(images, int) else "",
        _scales(scores),
        f"{classes} class{'' if classes == 1 else 'es'}",
        f"{len(absent)} absent and left out of the means: {', '.join(absent)}" if absent else "",
    ]
    return " · ".join(filter(None, parts))


def _scales(scores: dict) -> str:
    scales = [number(scale) for scale in scores.get("scales") or [1.0]]
    text = f"scale{'' if len(scales) == 1 else 's'} " + ", ".join(f"{scale:g}" for scale in scales)
    return ("single scale" if scales == [1.0] else text) + (" + flip" if scores.get("flip") else "")


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


def _sample(sample: Sample, classes: Classes) -> tuple[str, float, list[tuple[str, str]]]:
    """(name, pixel accuracy, pictures) of a sample."""
    labelled = sample.truth < len(classes)
    right = float((sample.truth == sample.prediction)[labelled].mean()) * 100 if labelled.any() else math.nan
    small = thumbnails(sample, classes)
    kinds = {"image": "JPEG", "truth": "PNG", "prediction": "PNG", "errors": "JPEG"}
    return sample.name, right, [(what, data_uri(getattr(small, what), kind)) for what, kind in kinds.items()]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


# --- parts of the pages that are not made from templates yet ---


def metric_of(name: str, value: float) -> str:
    unit = "<small>%</small>" if math.isfinite(value) else ""
    return f"<div class='metric'><b>{percent_of(value, 2)}{unit}</b><span>{name}</span></div>"


def safe(value: Any) -> str:
    return escape(printable(value), quote=True)


def percent_of(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else _NONE


def share_of(value: float) -> str:
    return "< 0.01".replace("<", "&lt;") if 0 < value < 0.01 else percent_of(value, 2)


def cells_of(values: Iterable[str]) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def swatch(color: Color | None) -> str:
    red, green, blue = color or (128, 128, 128)
    return f"<i class='swatch' style='background:rgb({red},{green},{blue})'></i>"


def style_of() -> str:
    dark = f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    return f":root{{{_variables(LIGHT)}}}\n{dark}\n{_RULES}"


def _variables(theme: Theme) -> str:
    page = "#f4f5f7" if theme is LIGHT else "#0f1217"
    return (
        f"--page:{page};--surface:{theme.surface};--ink:{theme.ink};--muted:{theme.muted};--line:{theme.line};"
        f"--accent:{theme.accent};--bad:{theme.bad}"
    )


PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
<footer>Written by segmv3. The figures are also in <code>figures/</code>.</footer>
</main>
</body>
</html>
"""

_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);-webkit-text-size-adjust:100%;
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1160px;margin:0 auto;padding:44px 24px 32px}
h1{font-size:clamp(24px,3.6vw,36px);line-height:1.15;letter-spacing:-.02em;font-weight:650;margin:0;
 overflow-wrap:anywhere}
h2{font-size:17px;line-height:1.3;letter-spacing:-.005em;font-weight:650;margin:0 0 14px}
h2 small{font-size:13px;font-weight:400;color:var(--muted);margin-left:4px}
h3{font-size:15px;font-weight:650;margin:10px 0 8px}
.eyebrow{font-size:12px;letter-spacing:.09em;text-transform:uppercase;font-weight:600;color:var(--muted);
 margin:0 0 8px}
.conditions{color:var(--muted);margin:10px 0 0;overflow-wrap:anywhere}
.metrics{display:grid;grid-template-columns:repeat(3,1fr);margin:26px 0 28px}
.metric{padding:0 28px;border-left:1px solid var(--line)}
.metric:first-child{padding-left:0;border:0}
.metric b{display:block;font-size:clamp(26px,5.4vw,58px);line-height:1.05;letter-spacing:-.035em;
 font-weight:650;font-variant-numeric:tabular-nums}
.metric:first-child b{color:var(--accent)}
.metric small{font-size:.45em;font-weight:500;letter-spacing:0;margin-left:.12em;color:var(--muted)}
.metric span{display:block;margin-top:8px;color:var(--muted)}
.empty{grid-column:1/-1;margin:0;color:var(--muted)}
section{margin:0 0 20px}
.pair{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:20px}
.card{background:var(--surface);border:1px solid var(--line);border-radius:14px;padding:22px 24px;min-width:0}
img{display:block;max-width:100%;height:auto}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4.5px 0;text-align:left;vertical-align:top;font-weight:400;border-top:1px solid var(--line)}
tr:first-child>*{border-top:0}
tbody tr:first-child>*{border-top:1px solid var(--line)}
.facts tbody tr:first-child>*{border-top:0}
.facts th{color:var(--muted);width:34%;padding-right:16px;overflow-wrap:anywhere}
.facts td{overflow-wrap:anywhere}
.numbers td{text-align:right;padding-left:14px;white-space:nowrap}
.numbers th{overflow-wrap:anywhere}
.numbers thead>tr>*{color:var(--muted);font-size:13px;vertical-align:bottom}
.numbers .mean>*{font-weight:650;border-top:2px solid var(--line)}
.absent>*{color:var(--muted)}
.absent .swatch{opacity:.45}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:9px;vertical-align:-1px;
 box-shadow:0 0 0 1px color-mix(in srgb,var(--muted) 55%,transparent)}
.wrong-pixel{background:rgb(237,36,56)}
.hatched{background:repeating-linear-gradient(135deg,#000 0 3px,#4a4a4a 3px 4.5px)}
.note{color:var(--muted);font-size:13.5px;margin:0 0 14px;max-width:88ch;text-wrap:pretty}
table+.note{margin:12px 0 0}
.right{color:var(--accent);font-weight:600}
.wrong{color:var(--bad);font-weight:600}
.muted{color:var(--muted)}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.matrix{max-width:100%;min-width:var(--least)}
.matrix img{width:100%}
.beside{display:flex;flex-wrap:wrap;gap:24px 36px;align-items:flex-start}
.beside .scroll{flex:0 1 auto;max-width:100%}
.beside .matrix{width:var(--side)}
.worst{flex:1 1 340px;max-width:620px;min-width:0}
.sample{margin:0 0 22px}
.sample p{margin:0 0 8px;overflow-wrap:anywhere}
.sample b{font-weight:600;margin-right:6px}
.cells{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:10px;align-items:start}
figure{margin:0}
figcaption{font-size:12.5px;color:var(--muted);margin:0 0 4px}
.cells img{width:100%;max-height:480px;object-fit:contain;object-position:left top;border-radius:6px}
.legend{display:flex;flex-wrap:wrap;gap:6px 20px;list-style:none;margin:0;padding:16px 0 0;
 border-top:1px solid var(--line);font-size:13.5px}
footer{color:var(--muted);font-size:13px;padding:8px 0 0}
code{font:.95em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media (max-width:860px){.pair{grid-template-columns:minmax(0,1fr)}}
@media (max-width:620px){
 main{padding:28px 14px 24px}
 .card{padding:18px 16px;border-radius:12px}
 .metric{padding:0 0 0 12px}
 .metric span{font-size:12.5px;line-height:1.3}
 .cells{grid-template-columns:repeat(2,minmax(0,1fr))}
 .numbers td{padding-left:10px}
}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""

"""The page of a run: `report.html`, which needs no other file, no script and no network.

Charts are embedded for a light and for a dark screen; the files in `figures/` are the light ones. All text
that comes from outside passes through `escaped`.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmv3.errors import printable
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array, write_png
from segmv3.labels import Classes, Color
from segmv3.report.plots import (
    DARK,
    LIGHT,
    Sample,
    Theme,
    confusion,
    confusion_side,
    curves,
    iou_bars,
    number,
    present,
    row_percent,
    sample_panel,
    thumbnails,
)

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
        facts: what to show in the header table, in this order.
        log: parsed lines of `log.jsonl`.
        scores: as written by the evaluation, in percent; {} when there was none.
        samples: pictures to show; the first `MAX_SAMPLES` are.
    Returns: the path of the page.
    Raises: OutputError when a file cannot be written.
    """
    figures = make_folder(run / "figures")
    training = Chart(figures / "curves.png", lambda theme: curves(log, theme))
    body = [_header(title, scores), _run_section(facts, training)]
    if scores:
        bars = Chart(figures / "iou.png", lambda theme: iou_bars(scores, classes, theme))
        matrix = Chart(figures / "confusion.png", lambda theme: confusion(scores, theme))
        body += [_classes_section(scores, classes, bars), _confusion_section(scores, matrix)]
    else:
        _remove(figures / "iou.png", figures / "confusion.png")
    if samples:
        shown = samples[:MAX_SAMPLES]
        write_png(figures / "samples.png", sample_panel(shown, classes))
        body.append(_samples_section(shown, len(samples), classes))
    else:
        _remove(figures / "samples.png")
    page = run / "report.html"
    write_bytes(page, PAGE_TEMPLATE.format(title=safe(title), style=style_of(), body="\n".join(body)).encode())
    return page


def write_classification_report(run: Path, *, title: str, facts: dict[str, str], log: list[dict], scores: dict) -> Path:
    """Write the report of a classification run: `run/report.html` and `run/figures/curves.png`.

    Args: facts, log: as for `write_report`. scores: as `segmv3.classification.accuracies` returns them.
    Returns: the path of the page.
    Raises: OutputError when a file cannot be written.
    """
    figures = make_folder(run / "figures")
    training = Chart(figures / "curves.png", lambda theme: curves(log, theme, ("top1", "Top-1")))
    shown = [(name, key) for name, key in (("top-1", "top1"), ("top-5", "top5")) if scores[key] is not None]
    images = f"{scores['images']:,} image{'' if scores['images'] == 1 else 's'}"
    crop = f"middle {' x '.join(map(str, scores['crop_size']))} of a shorter side of {scores['resize']}"
    conditions = f"{scores['split']} · {images} · {len(scores['classes']):,} classes · {crop}"
    body = [
        _heading(title, conditions, "".join(metric_of(name, number(scores[key])) for name, key in shown)),
        _run_section(facts, training, "Loss, learning rate and top-1 over the training steps"),
        _hardest_section(scores["classes"]),
    ]
    page = run / "report.html"
    write_bytes(page, PAGE_TEMPLATE.format(title=safe(title), style=style_of(), body="\n".join(body)).encode())
    return page


class Chart:
    """A chart in its light and dark form; the light one is written to `path`."""

    def __init__(self, path: Path, draw: Callable[[Theme], UInt8Array]) -> None:
        light, dark = draw(LIGHT), draw(DARK)
        write_png(path, light)
        self.height, self.width = light.shape[:2]
        self.light, self.dark = data_uri(light, "PNG"), data_uri(dark, "PNG")

    def html(self, alt: str) -> str:
        """The chart as an element that follows the screen's light or dark mode."""
        size = f'width="{self.width // 2}" height="{self.height // 2}"'
        return (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{self.dark}">'
            f'<img src="{self.light}" {size} alt="{safe(alt)}"></picture>'
        )


# --- sections ---


def _header(title: str, scores: dict) -> str:
    if scores:
        figures = [("mIoU", "miou"), ("mean accuracy", "mean_accuracy"), ("pixel accuracy", "pixel_accuracy")]
        metrics = "".join(metric_of(name, number(scores.get(key))) for name, key in figures)
    else:
        metrics = "<p class='empty'>Not evaluated yet: this run has no scores.</p>"
    return _heading(title, _conditions(scores) if scores else "", metrics)


def _heading(title: str, conditions: str, metrics: str) -> str:
    note = f"<p class='conditions'>{safe(conditions)}</p>" if conditions else ""
    return (
        f"<header><p class='eyebrow'>segmv3 run report</p><h1>{safe(title)}</h1>{note}"
        f"<div class='metrics'>{metrics}</div></header>"
    )


def metric_of(name: str, value: float) -> str:
    unit = "<small>%</small>" if math.isfinite(value) else ""
    return f"<div class='metric'><b>{percent_of(value, 2)}{unit}</b><span>{name}</span></div>"


def _conditions(scores: dict) -> str:
    """How the scores were measured: "val · 12 images · single scale · 19 classes, absent: train"."""
    images = scores.get("images")
    parts = [
        str(scores.get("split", "")),
        f"{images:,} image{'' if images == 1 else 's'}" if isinstance(images, int) else "",
        _scales(scores),
        f"{len(scores['classes'])} class{'' if len(scores['classes']) == 1 else 'es'}",
    ]
    absent = scores.get("absent") or []
    if absent:
        parts.append(f"{len(absent)} absent and left out of the means: {', '.join(absent)}")
    return " · ".join(part for part in parts if part)


def _scales(scores: dict) -> str:
    scales = [number(scale) for scale in scores.get("scales") or [1.0]]
    if scales == [1.0]:
        text = "single scale"
    else:
        text = f"scale{'' if len(scales) == 1 else 's'} " + ", ".join(f"{scale:g}" for scale in scales)
    return text + (" + flip" if scores.get("flip") else "")


def _run_section(
    facts: dict[str, str], chart: Chart, alt: str = "Loss, learning rate and mIoU over the training steps"
) -> str:
    rows = "".join(f"<tr><th>{safe(key)}</th><td>{safe(value)}</td></tr>" for key, value in facts.items())
    table = f"<div class='card'><h2>Run</h2><table class='facts'>{rows}</table></div>" if facts else ""
    return (
        f"<section class='{'pair' if facts else ''}'>{table}"
        f"<div class='card'><h2>Training</h2>{chart.html(alt)}</div></section>"
    )


def _classes_section(scores: dict, classes: Classes, chart: Chart) -> str:
    colors = dict(zip(classes.names, classes.colors, strict=True))
    rows = "".join(_class_row(row, colors.get(row["name"])) for row in scores["classes"])
    mean = (
        f"<tr class='mean'><th>mean</th><td>{percent_of(number(scores.get('miou')))}</td>"
        f"<td>{percent_of(number(scores.get('mean_accuracy')))}</td><td></td></tr>"
    )
    alt = f"IoU of each class as bars; the mean is {percent_of(number(scores.get('miou')))} percent"
    return (
        "<section class='pair'>"
        f"<div class='card'><h2>IoU by class</h2>{chart.html(alt)}</div>"
        "<div class='card'><h2>Classes <small>percent</small></h2><table class='numbers'>"
        "<thead><tr><th>class</th><td>IoU</td><td>accuracy</td><td>share</td></tr></thead>"
        f"<tbody>{rows}</tbody><tfoot>{mean}</tfoot></table>"
        "<p class='note'>Share: of the labelled pixels.</p></div></section>"
    )


def _hardest_section(classes: list[dict]) -> str:
    """The classes with the lowest top-1, hardest first."""
    hardest = sorted(classes, key=lambda row: math.inf if row["top1"] is None else row["top1"])[:_MAX_HARDEST]
    five = any(row["top5"] is not None for row in hardest)
    head = f"<thead><tr><th>class</th><td>top-1</td>{'<td>top-5</td>' if five else ''}<td>images</td></tr></thead>"
    rows = "".join(
        f"<tr><th>{safe(row['name'])}</th>"
        + cells_of(percent_of(number(row[key])) for key in ("top1", "top5") if key == "top1" or five)
        + f"<td>{row['images']:,}</td></tr>"
        for row in hardest
    )
    title = "Hardest classes" if len(classes) > len(hardest) else "Classes, hardest first"
    table = f"<table class='numbers'>{head}<tbody>{rows}</tbody></table>"
    return f"<section><div class='card'><h2>{title} <small>percent</small></h2>{table}</div></section>"


def _class_row(row: dict, color: Color | None) -> str:
    iou, accuracy, share = (number(row.get(key)) for key in ("iou", "accuracy", "share"))
    kind = " class='absent'" if math.isnan(iou) else ""
    cells = (percent_of(iou) if math.isfinite(iou) else "absent", percent_of(accuracy), share_of(share))
    return f"<tr{kind}><th>{swatch(color)}{safe(row['name'])}</th>{cells_of(cells)}</tr>"


def _confusion_section(scores: dict, chart: Chart) -> str:
    side = confusion_side(len(scores["classes"]))
    phone = min(side, 620)
    alt = "Confusion matrix: rows are the truth, columns the prediction, in percent of each row"
    matrix = f"<div class='matrix' style='--side:{side}px;--least:{phone}px'>{chart.html(alt)}</div>"
    return (
        "<section><div class='card'><h2>Confusion</h2>"
        "<p class='note'>Percent of the pixels of each true class, by what they were taken for. "
        "<b class='right'>Blue</b> is right, <b class='wrong'>red</b> is wrong; "
        "colour grows with the square root, so that small errors show.</p>"
        f"<div class='beside'><div class='scroll'>{matrix}</div>{_worst_confusions(scores)}</div>"
        "</div></section>"
    )


def _worst_confusions(scores: dict) -> str:
    names = [row["name"] for row in scores["classes"]]
    counts = np.array(scores["confusion_matrix"], np.int64)
    share = row_percent(scores["confusion_matrix"])
    np.fill_diagonal(counts, 0)
    wrong = int(counts.sum())
    largest = np.argsort(-counts, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = [divmod(int(flat), len(names)) for flat in largest]
    rows = "".join(
        f"<tr><th>{safe(names[truth])} <span class='muted'>taken for</span> {safe(names[taken])}</th>"
        + cells_of((percent_of(100 * counts[truth, taken] / wrong), percent_of(share[truth, taken])))
        + "</tr>"
        for truth, taken in pairs
        if counts[truth, taken] > 0
    )
    if not rows:
        return ""
    return (
        "<div class='worst'><h3>Where the wrong pixels are</h3><table class='numbers'>"
        "<thead><tr><th>confusion</th><td>% of all<br>errors</td><td>% of the<br>class</td></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _samples_section(samples: list[Sample], total: int, classes: Classes) -> str:
    note = f"<p class='note'>The first {len(samples)} of {total}.</p>" if total > len(samples) else ""
    chips = "".join(
        f"<li>{swatch(classes.colors[i])}{safe(classes.names[i])}</li>" for i in sorted(present(samples, classes))
    )
    errors = "<li><i class='swatch wrong-pixel'></i>wrong</li><li><i class='swatch hatched'></i>ignored</li>"
    figures = "".join(_sample(sample, classes) for sample in samples)
    return (
        f"<section><div class='card'><h2>Samples</h2>{note}{figures}"
        f"<ul class='legend'>{chips}{errors}</ul></div></section>"
    )


def _sample(sample: Sample, classes: Classes) -> str:
    pictures = thumbnails(sample, classes)
    cells = [
        ("image", data_uri(pictures.image, "JPEG")),
        ("truth", data_uri(pictures.truth, "PNG")),
        ("prediction", data_uri(pictures.prediction, "PNG")),
        ("errors", data_uri(pictures.errors, "JPEG")),
    ]
    labelled = sample.truth < len(classes)
    right = float((sample.truth == sample.prediction)[labelled].mean()) * 100 if labelled.any() else math.nan
    images = "".join(
        f"<figure><figcaption>{what}</figcaption><img src='{uri}' alt='{what}: {safe(sample.name)}'></figure>"
        for what, uri in cells
    )
    return (
        f"<div class='sample'><p><b>{safe(sample.name)}</b> <span class='muted'>pixel accuracy "
        f"{percent_of(right)}</span></p><div class='cells'>{images}</div></div>"
    )


# --- parts ---


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


def data_uri(pixels: UInt8Array, kind: str) -> str:
    """Pixels as a data URI: charts and labels as PNG (exact), photographs as JPEG (a tenth of the size)."""
    file = io.BytesIO()
    if kind == "JPEG":
        Image.fromarray(pixels).save(file, format=kind, quality=86, subsampling=0)  # sharp red on grey
    else:
        Image.fromarray(pixels).save(file, format=kind, compress_level=6)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


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

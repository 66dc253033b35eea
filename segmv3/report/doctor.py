"""The result of the data doctor for people: a table for the terminal and `check.html`, a page with pictures.

Both are made from the JSON dict that `segmv3.doctor.examine` returns. The page needs no other file, no script
and no network, like the report of a run.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich import box
from rich.table import Table

from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array, write_png
from segmv3.labels import Classes
from segmv3.media.draw import colorize, legend, occurring, overlay
from segmv3.report.page import PAGE_TEMPLATE, Chart, data_uri, percent_of, safe, share_of, style_of, swatch
from segmv3.report.plots import NORMAL, SMALL, Theme, cut, new_figure, pixels_of, plain

_LINES = 10  # files of a finding in the terminal
_SHOWN = 6  # files of a finding on the page
_SIDE = 480  # pixels of a thumbnail
_FACTS = (
    "images",
    "labels",
    "width x height",
    "images are",
    "labels are",
    "labelled pixels",
    "mean R G B",
    "std R G B",
)
_NONE = "–"  # noqa: RUF001 (an en dash stands for "no number")


@dataclass(frozen=True)
class LabelledImage:
    """One pair to look at."""

    split: str
    name: str
    image: UInt8Array
    """uint8 H x W x 3, RGB."""
    labels: UInt8Array
    """uint8 H x W train ids, 255 = ignore."""


@dataclass(frozen=True)
class Pictures:
    """What the page can show of the files that findings name."""

    read: Callable[[Path], UInt8Array | None]
    """A file as RGB, uint8 H x W x 3; None where it cannot be decoded."""
    labels: frozenset[Path]
    """Those files that are labels: flat colours, not photographs."""


# --- terminal ---


def splits_table(result: dict[str, Any]) -> Table:
    """What each split holds."""
    table = Table(box=box.SIMPLE)
    for column in ("", *result["splits"]):
        table.add_column(column, overflow="fold")
    columns = [_split_cells(each) for each in result["splits"].values()]
    for name, *cells in zip(_FACTS, *columns, strict=True):
        table.add_row(name, *cells)
    return table


def classes_table(result: dict[str, Any]) -> Table:
    """The share of each class of the labelled pixels, and in how many images it occurs."""
    table = Table(box=box.SIMPLE)
    table.add_column("class")
    for split in result["splits"]:
        table.add_column(f"{split} %", justify="right")
        table.add_column("images", justify="right")
    for row in result["classes"]:
        cells = [cell for split in result["splits"] for cell in _class_cells(row["splits"][split])]
        table.add_row(row["name"], *cells)
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
    return f"{result['dataset']} {state}: {found} in {_count(images, 'image')} of {_and(result['splits'])}"


def _level_count(result: dict[str, Any], level: str) -> str:
    """`6 errors (10 files)`."""
    files = {file["path"] for finding in result["findings"] if finding["level"] == level for file in finding["files"]}
    return _count(result[f"{level}s"], level) + (f" ({_count(len(files), 'file')})" if files else "")


def _split_cells(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{each['images']:,}",
        f"{each['labels']:,}",
        _most(each["sizes"]),
        _most(each["image_modes"]),
        _most(each["label_modes"]),
        _NONE if each["labelled_share"] is None else f"{each['labelled_share']:.2f} %",
        _rgb(each["mean"]),
        _rgb(each["std"]),
    )


def _class_cells(each: dict[str, Any]) -> tuple[str, str]:
    if each["share"] is None:
        return _NONE, _NONE
    if not each["pixels"]:
        return "absent", "0"
    return ("< 0.01" if each["share"] < 0.01 else f"{each['share']:.2f}"), f"{each['images']:,}"


def _most(counts: dict[str, int], limit: int = 3) -> str:
    """`480x360` where all are alike, else `480x360 (364), 640x480 (3)`."""
    if len(counts) <= 1:
        return next(iter(counts), _NONE)
    shown = ", ".join(f"{value} ({count:,})" for value, count in list(counts.items())[:limit])
    return shown + (f", {len(counts) - limit} more" if len(counts) > limit else "")


def _rgb(values: list[float] | None) -> str:
    return _NONE if values is None else " ".join(f"{value:.1f}" for value in values)


def _line(file: dict[str, Any], result: dict[str, Any]) -> str:
    return str(file["text"] or file["path"]).replace(f"{result['root']}/", "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _and(words: Iterable[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# --- page ---


def write_check_page(
    folder: Path, result: dict[str, Any], classes: Classes, samples: list[LabelledImage], pictures: Pictures
) -> Path:
    """Write `folder/check.html` and `folder/figures/`, each complete or not at all.

    Args: result: as `segmv3.doctor.examine` returns it. samples: pairs to show.
    Returns: the path of the page.
    Raises: OutputError when a file cannot be written.
    """
    figures = make_folder(folder / "figures")
    chart = Chart(figures / "shares.png", lambda theme: share_bars(result, theme))
    if samples:
        write_png(figures / "samples.png", sample_sheet(samples, classes))
    else:
        (figures / "samples.png").unlink(missing_ok=True)
    body = [
        _header(result),
        _findings_section(result, pictures),
        _splits_section(result),
        _classes_section(result, classes, chart),
        _samples_section(samples, classes),
        _ids_section(result),
    ]
    page = folder / "check.html"
    title = f"{result['dataset']}: data check"
    content = PAGE_TEMPLATE.format(title=safe(title), style=style_of() + _RULES, body="\n".join(filter(None, body)))
    write_bytes(page, content.encode(errors="replace"))
    return page


def share_bars(result: dict[str, Any], theme: Theme) -> UInt8Array:
    """Share of each class of the labelled pixels as bars in its colour: a bar a split, the first one the fullest."""
    rows, splits = result["classes"], [s for s, each in result["splits"].items() if each["labelled_pixels"]]
    thick = 0.78 / max(len(splits), 1)
    figure = new_figure(500, 60 + max(31, 15 * len(splits) + 8) * max(len(rows), 2))
    axes = figure.add_subplot()
    plain(axes, theme, grid="x")
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
    axes.set_xlabel("share of the labelled pixels, %", color=theme.muted, fontsize=NORMAL)
    return pixels_of(figure, theme)


def sample_sheet(samples: list[LabelledImage], classes: Classes) -> UInt8Array:
    """Rows of image | labels | labels over the image, and a legend below."""
    rows = [_thumbnails(sample, classes) for sample in samples]
    cell = max(row[0].shape[1] for row in rows)
    gap = 12
    width = 3 * cell + 2 * gap
    strips = []
    for row in rows:
        strip = np.full((row[0].shape[0] + gap, width, 3), 255, np.uint8)
        for place, picture in enumerate(row):
            left = place * (cell + gap)
            strip[: picture.shape[0], left : left + picture.shape[1]] = picture
        strips.append(strip)
    present = set().union(*(occurring(sample.labels, classes) for sample in samples))
    return np.vstack([*strips, legend(classes, width, present)])


def _thumbnails(sample: LabelledImage, classes: Classes) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    image = _shrunk(sample.image, flat=False)
    labels = cv2.resize(sample.labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return image, colorize(labels, classes), overlay(image, labels, classes)


def _shrunk(picture: UInt8Array, *, flat: bool) -> UInt8Array:
    """At most `_SIDE` wide and high; flat colours stay those that they were."""
    scale = min(_SIDE / max(picture.shape[:2]), 1.0)
    size = max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA)


def _header(result: dict[str, Any]) -> str:
    images = sum(each["images"] for each in result["splits"].values())
    metrics = "".join(
        f"<div class='metric {kind}'><b>{number:,}</b><span>{name}</span></div>"
        for name, number, kind in (
            ("images" if images != 1 else "image", images, ""),
            ("error" if result["errors"] == 1 else "errors", result["errors"], "bad" if result["errors"] else ""),
            ("warning" if result["warnings"] == 1 else "warnings", result["warnings"], ""),
        )
    )
    return (
        f"<header><p class='eyebrow'>segmv3 data check</p><h1>{safe(result['dataset'])}</h1>"
        f"<p class='conditions'>{safe(verdict(result))}</p><p class='conditions'>{safe(result['root'])}</p>"
        f"<div class='metrics'>{metrics}</div></header>"
    )


def _findings_section(result: dict[str, Any], pictures: Pictures) -> str:
    if not result["findings"]:
        body = "<p class='note'>Nothing: every file decodes, pairs up and holds only legal ids.</p>"
    else:
        body = "".join(_finding(finding, result, pictures) for finding in result["findings"])
    return f"<section><div class='card'><h2>Findings</h2>{body}</div></section>"


def _finding(finding: dict[str, Any], result: dict[str, Any], pictures: Pictures) -> str:
    files = finding["files"]
    marked = finding["kind"] == "illegal ids"
    shown = "".join(_file(file, result, pictures, marked) for file in files[:_SHOWN])
    rest = f"<p class='note'>And {len(files) - _SHOWN:,} more, all in check.json.</p>" if len(files) > _SHOWN else ""
    level = finding["level"]
    return (
        f"<div class='finding'><h3><span class='level {level}'>{level}</span> "
        f"<span class='muted'>{safe(finding['split'])}</span> {safe(finding['text'])}</h3>"
        f"<div class='files'>{shown}</div>{rest}</div>"
    )


def _file(file: dict[str, Any], result: dict[str, Any], pictures: Pictures, marked: bool) -> str:
    paths = [Path(place) for place in (file["path"], file["partner"]) if place]
    cells = "".join(_picture(path, pictures, marked) for path in paths)
    return f"<div class='file'><div class='thumbs'>{cells}</div><p>{safe(_line(file, result))}</p></div>"


def _picture(path: Path, pictures: Pictures, marked: bool) -> str:
    picture = pictures.read(path)
    what = "label" if path in pictures.labels else "image"
    caption = f"{what}, illegal ids in red" if marked and what == "label" else what
    if picture is None:
        return f"<figure><figcaption>{caption}</figcaption><div class='undecoded'>cannot be decoded</div></figure>"
    flat = path in pictures.labels
    uri = data_uri(_shrunk(picture, flat=flat), "PNG" if flat else "JPEG")
    return f"<figure><figcaption>{caption}</figcaption><img src='{uri}' alt='{what}: {safe(path.name)}'></figure>"


def _splits_section(result: dict[str, Any]) -> str:
    columns = [_split_cells(each) for each in result["splits"].values()]
    head = "".join(f"<th>{safe(split)}</th>" for split in result["splits"])
    rows = "".join(
        f"<tr><th>{name}</th>" + "".join(f"<td>{safe(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in zip(_FACTS, *columns, strict=True)
    )
    return (
        "<section><div class='card'><h2>Splits</h2><div class='scroll'><table class='facts splits' "
        f"style='--splits:{len(columns)}'>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "<p class='note'>Mean and std are over all pixels of all images, 0 to 255.</p></div></section>"
    )


def _classes_section(result: dict[str, Any], classes: Classes, chart: Chart) -> str:
    splits = list(result["splits"])
    head = "".join(f"<td>{safe(split)} %</td><td>images</td>" for split in splits)
    rows = "".join(
        f"<tr><th>{swatch(classes.colors[row['train_id']])}{safe(row['name'])}</th>"
        + "".join(f"<td>{safe(cell)}</td>" for split in splits for cell in _class_cells(row["splits"][split]))
        + "</tr>"
        for row in result["classes"]
    )
    bars = chart.html("Share of each class of the labelled pixels, as bars")
    return (
        "<section class='pair'>"
        f"<div class='card'><h2>Class shares</h2>{bars}</div>"
        "<div class='card'><h2>Classes</h2><div class='scroll'><table class='numbers classes'>"
        f"<thead><tr><th>class</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "<p class='note'>Share of the labelled pixels, and how many images hold the class.</p></div></section>"
    )


def _samples_section(samples: list[LabelledImage], classes: Classes) -> str:
    if not samples:
        return ""
    present = sorted(set().union(*(occurring(sample.labels, classes) for sample in samples)))
    chips = "".join(f"<li>{swatch(classes.colors[i])}{safe(classes.names[i])}</li>" for i in present)
    body = []
    for sample in samples:
        image, labels, both = _thumbnails(sample, classes)
        cells = (("image", image, "JPEG"), ("labels", labels, "PNG"), ("labels over the image", both, "JPEG"))
        figures = "".join(
            f"<figure><figcaption>{what}</figcaption><img src='{data_uri(picture, kind)}' "
            f"alt='{what}: {safe(sample.name)}'></figure>"
            for what, picture, kind in cells
        )
        body.append(
            f"<div class='sample'><p><b>{safe(sample.name)}</b> <span class='muted'>{safe(sample.split)}</span></p>"
            f"<div class='cells three'>{figures}</div></div>"
        )
    return (
        "<section><div class='card'><h2>Samples <small>evenly spaced, not chosen; black is ignored</small></h2>"
        f"{''.join(body)}<ul class='legend'>{chips}</ul></div></section>"
    )


def _ids_section(result: dict[str, Any]) -> str:
    splits = {split: each for split, each in result["splits"].items() if each["pixels"]}
    if not splits:
        return ""
    ids = sorted({int(i) for each in splits.values() for i in each["ids"]})
    head = "".join(f"<td>{safe(split)} %</td><td>pixels</td>" for split in splits)
    rows = "".join(
        f"<tr><th>{i} <span class='muted'>{safe(result['ids'].get(str(i), 'illegal'))}</span></th>"
        + "".join(_id_cells(each["ids"].get(str(i), 0), each["pixels"]) for each in splits.values())
        + "</tr>"
        for i in ids
    )
    return (
        "<section><div class='card'><details><summary>Stored ids</summary><div class='scroll'><table class='numbers'>"
        f"<thead><tr><th>id in the label files</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "</details></div></section>"
    )


def _id_cells(pixels: int, total: int) -> str:
    share = 100 * pixels / total if pixels else math.nan
    return f"<td>{share_of(share) if pixels else percent_of(share)}</td><td>{pixels:,}</td>"


_RULES = """
.metric.bad b{color:var(--bad)}
.metric:first-child b{color:var(--ink)}
.conditions+.conditions{margin-top:2px;font-size:13.5px}
.finding{border-top:1px solid var(--line);padding:14px 0 4px}
.finding:first-of-type{border-top:0;padding-top:0}
.finding h3{margin:0 0 10px;font-weight:500;overflow-wrap:anywhere}
.level{display:inline-block;font-size:12px;font-weight:650;border:1px solid currentColor;border-radius:6px;
 padding:1px 7px;margin-right:4px}
.level.error{color:var(--bad)}
.level.warning{color:#b4690e}
.level.note{color:var(--muted)}
.files{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:14px 20px}
.file p{margin:6px 0 0;font-size:13px;color:var(--muted);overflow-wrap:anywhere}
.thumbs{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:8px;align-items:start}
.thumbs img{width:100%;max-height:220px;object-fit:contain;object-position:left top;border-radius:5px}
.undecoded{display:grid;place-items:center;min-height:70px;border:1px dashed var(--muted);border-radius:5px;
 color:var(--muted);font-size:12.5px;padding:4px;text-align:center}
.cells.three{grid-template-columns:repeat(3,minmax(0,1fr))}
.splits{min-width:calc(104px + var(--splits)*108px)}
.splits td,.splits thead th{padding-right:16px}
.splits{table-layout:fixed}
.facts.splits th{width:auto}
.facts.splits th:first-child{width:150px}
.classes th{white-space:nowrap}
.splits thead th{color:var(--muted);font-size:13px}
summary{cursor:pointer;font-weight:650;font-size:17px}
details[open] summary{margin-bottom:14px}
@media (max-width:620px){.cells.three{grid-template-columns:minmax(0,1fr)}
 .splits,.classes{font-size:13.5px}
 .facts.splits th:first-child{width:104px}}
"""

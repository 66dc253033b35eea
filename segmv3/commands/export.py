"""`segmv3 export`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from segmv3.commands.options import OwnParts, parse, refuse_limit
from segmv3.config import Layout
from segmv3.convert.targets import NAMES
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from segmv3.convert.graph import Net
    from segmv3.exporting import Exported
    from segmv3.exporting.pictures import Pictures
    from segmv3.screen import Screen

    Target = str
else:
    Target = Literal[NAMES]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A data set whose images and labels prove the export; for a classifier pictures in one folder a class."""

    root: Path | None = None
    """The folder that holds it."""
    dataset: Layout | None = None
    """Layout on disk; by default what the folder looks like."""


@dataclass(frozen=True, kw_only=True)
class Export(OwnParts):
    """Convert a net for another runtime, and prove that the file computes what PyTorch computes.

    uint8 RGB in, N x H x W x 3; normalisation is inside. The file is opened by its own runtime and compared with
    PyTorch in fp32; FILE.receipt.json says how well they agree. An export that disagrees is not left in place.
    """

    weights: tyro.conf.Positional[str]
    """Weight file, or a name of `segmv3 weights list`."""
    to: Target
    """The kind of file. An OpenVINO model is two by its nature, FILE.xml and FILE.bin."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; by default the name of the weights with .onnx, .xml or .pt2, in the current folder."""
    output_kind: Literal["low-logits", "logits", "labels"] = "low-logits"
    """What comes out: float logits at the net's own resolution (the least work, for `segmv3 predict` and your own
    upsampling), float logits at the image's size, or uint8 labels at the image's size."""
    size: tuple[int, int] | None = None
    """The only image height and width that the file will take; by default any, in batches of any number."""
    images: str | None = None
    """Image, folder, glob or list (.txt) to compare on, and to calibrate int8 on; by default two drawn scenes."""
    data: Labelled = field(default_factory=Labelled)
    split: str = "val"
    """Part of --data.root to compare and score on; int8 is calibrated on train."""
    limit: int | None = None
    """Compare on at most N images, evenly spread; by default 16, or all for int8 with --data.root."""
    overwrite: bool = False
    """Replace the output file and its receipt."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


def run(arguments: list[str]) -> None:
    """Export, showing what is done and then how well the file agrees.

    Args:
        arguments: those after `export`.

    Raises:
        Segmv3Error: as `segmv3.export`.
    """
    options = parse(Export, "segmv3 export", arguments)
    options.import_parts()
    refuse_limit(options.limit)
    if options.size and min(options.size) < 1:
        raise ConfigError(f"--size is {options.size[0]} {options.size[1]}; height and width must be at least 1")
    if options.images and options.data.root:
        raise ConfigError("--images and --data.root are two ways to name images; choose one of them")
    from segmv3.exporting import export
    from segmv3.runtime import use_device
    from segmv3.screen import Screen

    use_device("cpu", options.threads)
    console = Screen()
    with console.status("find the images") as status:
        exported = export(
            options.weights,
            options.output,
            target=options.to,
            output_kind=options.output_kind,
            size=options.size,
            images=_pictures(options),
            overwrite=options.overwrite,
            command=shlex.join(["segmv3", "export", *arguments]),
            say=lambda text: status.update(console.render_str(text)),
        )
    _report(exported, console)


def _pictures(options: Export) -> Pictures | Callable[[Net], Pictures] | None:
    from segmv3.data.sources import data_in
    from segmv3.exporting import in_folders, labelled, photographs
    from segmv3.models.segmenter import Segmenter

    if options.images:
        return photographs(options.images, options.limit)
    if root := options.data.root:
        whole = options.to.endswith("int8")

        def of(net: Net) -> Pictures:
            if isinstance(net, Segmenter):
                return labelled(data_in(root, options.data.dataset), options.split, options.limit, whole=whole)
            return in_folders(root, options.split, options.limit, whole=whole)

        return of
    return None


def _report(exported: Exported, console: Screen) -> None:
    facts, agreement = exported.facts, exported.agreement
    console.print(_table(exported))
    if agreement.miou_candidate is not None:
        console.say(
            f"mIoU {agreement.miou_candidate:.3f}, PyTorch {agreement.miou_reference:.3f}, "
            f"on {agreement.scored_images} labelled images"
        )
    if agreement.top1_candidate is not None:
        console.say(
            f"top-1 {agreement.top1_candidate:.3f}, PyTorch {agreement.top1_reference:.3f}, "
            f"on {agreement.scored_images} pictures in class folders"
        )
    if view := facts["view"]:
        if facts["limits"]["relative_rms"] is None:
            share = facts["limits"]["top1_agreement"]
            console.say(f"int8 must keep the first choice of {share:g} % of the pictures, a limit that segmv3 chose")
        height, width = view["crop_size"]
        console.say(
            f"before the file: shorter side to {view['resize']} ({view['interpolation']}), "
            f"then the middle {height}x{width}"
        )
    if "latency_ms" in facts:
        height, width = facts["latency_ms"]["size"]
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in facts["latency_ms"].items() if name != "size")
        console.say(f"the net alone at {height}x{width}: {times}: {', '.join(facts['verdict'])}")
    remedy = "; --images DIR proves it on your own" if facts["drawn"] else ""
    console.say(f"proved on {facts['images']}{remedy}")
    files = " and ".join(str(file) for file in exported.files)
    console.say(f"wrote {files} ({exported.megabytes:.1f} MB), receipt {exported.receipt}")


def _table(exported: Exported) -> Table:
    """How well the file and PyTorch agree, by image size."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in (
        "size",
        "images",
        "largest logit difference",
        "relative RMS",
        "same top-1" if exported.facts["view"] else "same labels",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for found in exported.agreement.sizes:
        table.add_row(
            f"{found.size[0]}x{found.size[1]}",
            str(found.images),
            "-" if found.max_logit_difference is None else f"{found.max_logit_difference:.2e}",
            "-" if found.relative_rms is None else f"{found.relative_rms:.2e}",
            f"{found.label_agreement:.3f} %",
        )
    return table

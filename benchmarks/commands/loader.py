"""`segmv3 benchmark loader`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmv3.commands.benchmark.shared import Measurement, columns, measuring, refuse_repeat
from segmv3.commands.options import parse
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.loader import Timing
    from segmv3.config import Data
    from segmv3.data.datasets import Dataset
    from segmv3.data.packed import PackedDataset


@dataclass(frozen=True, kw_only=True)
class Root:
    root: str | None = None
    """The folder that holds the data set."""


@dataclass(frozen=True, kw_only=True)
class Loader(Measurement):
    """Training samples per second: from image files, from a packed cache, and by mmsegmentation's published steps.

    Every pipeline makes crops of the same images, first on one core, in turns, then with --workers processes.
    """

    repeat: int = 50
    """Timed samples of each pipeline."""
    data: Root = field(default_factory=Root)
    images: int = 8
    """Images of 1024x2048 that are drawn, or the first of --data.root."""
    crop: tuple[int, int] = (512, 1024)
    """Height and width of a sample."""
    workers: int = 2
    """Processes that make batches of 4 samples together; 0 leaves that out."""
    seconds: float = 10.0
    """How long each is watched with workers."""


def run(arguments: list[str]) -> None:
    options = parse(Loader, "segmv3 benchmark loader", arguments)
    _check(options)
    with measuring("loader", replace(options, device="cpu"), arguments) as session:
        from benchmarks.loader import pipelines, time_loader, time_parts, time_peer_loader, time_pipelines
        from segmv3.images import png_library

        with session.progress() as (tell, _):
            data, dataset, packed = _prepare(options, session.place.folder, tell)
            found = pipelines(dataset, data, packed)
            tell("one core")
            timings = time_pipelines(found, len(dataset), options.repeat)
            parts = time_parts(dataset, packed, data, options.repeat)
            if options.workers:
                for number, (pipeline, timing) in enumerate(zip(found, timings, strict=True)):
                    tell(f"{options.workers} workers, {pipeline.name}")
                    if not timing.reason:
                        rate = time_peer_loader(pipeline, len(dataset), data, options.seconds)
                        timings[number] = replace(timing, per_second=rate)
                tell("our batches")
                ours = {"files": time_loader(dataset, data, options.seconds)}
                ours["cache"] = time_loader(packed, data, options.seconds)
        height, width = packed.images[0].height, packed.images[0].width
        where = f"{dataset.title}, {len(dataset)} images of {height}x{width}"
        title = f"a sample of {options.crop[0]}x{options.crop[1]} from {where}, one core"
        session.show(title, _table(timings), _NOTE)
        for timing in timings:
            if timing.reason:
                session.say(f"{timing.name} {timing.reason}")
        session.show("where the time goes, one core", _parts(parts))
        library = png_library()
        hint = "" if library == "libspng" else '; libspng is faster: pip install "segmv3[png]"'
        session.say(f"segmv3 decodes plain PNG files by {library}{hint}")
        batches = {}
        if options.workers:
            batches = ours
            session.say(
                f"batches as training gets them, --workers {options.workers}: {ours['files']:.1f} samples a second "
                f"from files, {ours['cache']:.1f} from the cache"
            )
        session.keep(
            dataset=[{"title": dataset.title, "images": len(dataset), "size": [height, width]}],
            pipelines=[_facts(timing) for timing in timings],
            parts=[_facts(timing) for timing in parts],
            batches=[{"from": name, "per_second": rate} for name, rate in batches.items()],
            decoders=[{"files": "PNG", "library": library}],
        )
        session.finish()


def _prepare(options: Loader, folder: Path, tell: Callable[[str], None]) -> tuple[Data, Dataset, PackedDataset]:
    """The images to be sampled from, as files and as a packed cache."""
    from segmv3.config import Data
    from segmv3.data.datasets import open_dataset
    from segmv3.data.loader import refuse_workers_beyond_memory
    from segmv3.data.pack import pack
    from segmv3.data.sources import layout_of
    from segmv3.mini_city import write_mini_city

    root = Path(options.data.root) if options.data.root else folder / "mini-city"
    if not options.data.root:
        tell("drawing streets")
        write_mini_city(root, train=options.images, val=1, size=(1024, 2048))
    data = Data(dataset=layout_of(root), root=root, batch_size=4, crop_size=options.crop, workers=options.workers)
    refuse_workers_beyond_memory(data)
    whole = open_dataset(data, "train")
    dataset = replace(whole, pairs=whole.pairs[: options.images])
    tell("packing")
    return data, dataset, pack(dataset, folder / "packed")


def _check(options: Loader) -> None:
    if options.device == "cuda":
        raise ConfigError("the loader is timed on the CPU only; leave --device cuda out")
    if min(options.crop) < 1:
        raise ConfigError(f"--crop is {options.crop[0]} {options.crop[1]}; height and width must be at least 1")
    refuse_repeat(options.images, "images")
    if options.workers < 0:
        raise ConfigError(f"--workers is {options.workers}; it must be at least 0")
    if not 0 < options.seconds < float("inf"):
        raise ConfigError(f"--seconds is {options.seconds:g}; it must be above 0")


_NOTE = (
    "mean, median, least: CPU milliseconds a sample; a long run costs the mean, samples differ by their scale\n"
    "a second: samples of one core, and of all workers. mmsegmentation's are jittered, ours are to be by the device\n"
    "Drawn streets decode faster than photographs (--data.root)"
)


def _table(timings: list[Timing]) -> Table:
    table = columns("pipeline", "mean", "median", "least", "a second", "speed", "all workers", text=("pipeline",))
    first = next(each for each in timings if each.milliseconds)
    for each in timings:
        if each.reason:
            continue
        cells = (each.mean, each.median, each.minimum, each.per_core)
        rate = "" if isnan(each.per_second) else f"{each.per_second:.1f}"
        table.add_row(each.name, *(f"{cell:.1f}" for cell in cells), f"{first.mean / each.mean:.1f}x", rate)
    return table


def _parts(parts: list[Timing]) -> Table:
    table = columns("part", "mean", "median", "least", text=("part",))
    for each in parts:
        table.add_row(each.name, *(f"{cell:.2f}" for cell in (each.mean, each.median, each.minimum)))
    return table


def _facts(timing: Timing) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": timing.name}
    if timing.reason:
        return facts | {"reason": timing.reason}
    facts |= {key: round(getattr(timing, key), 4) for key in ("mean", "median", "minimum", "per_core")}
    return facts if isnan(timing.per_second) else facts | {"per_second": round(timing.per_second, 2)}

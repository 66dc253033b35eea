"""`segmv3 predict`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from segmv3.commands.options import OnDevice, OwnParts, Trusting, parse
from segmv3.config import AnyBackend, AnyPrecision
from segmv3.errors import ConfigError
from segmv3.evaluation.settings import Settings

if TYPE_CHECKING:
    from segmv3.images import UInt8Array
    from segmv3.labels import Classes
    from segmv3.prediction.contract import Found, Frames, Kind
    from segmv3.prediction.labeller import Labeller
    from segmv3.prediction.merging import Merge
    from segmv3.runtime import Predictor
    from segmv3.screen import Screen


@dataclass(frozen=True, kw_only=True)
class Predict(OnDevice, Trusting, OwnParts):
    """Label images, a video, a camera, a stream or the screen."""

    source: tyro.conf.Positional[str]
    """An image, a folder, a quoted glob, a sequence (frame_%04d.png), a .txt list of images, a video, a camera (0), an
    address (rtsp://, https://, ...), screen, or - for standard input."""
    weights: str | None = None
    """Weight file, name of `segmv3 weights list`, exported file, or folder of a net of transformers or smp. By default
    the best published net for streets, downloaded once."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("predictions")
    """Folder for the results."""
    save: str = "overlay"
    """Comma-separated kinds. Pictures: overlay (colours over the image), side-by-side, color (colours alone), labels
    (grey PNG of train ids), confidence (grey), image, masks (0/255, see --classes). Numbers: json, csv. Annotations:
    coco, cvat, label-studio."""
    classes: str = ""
    """Comma-separated classes for masks and annotations; all by default."""
    polygons: bool = False
    """Write annotations as polygons, up to a pixel off, instead of masks."""
    merge: Path | None = None
    """TOML file that merges the net's classes into fewer."""
    crop: tuple[int, int, int, int] | None = None
    """Label only a region: left, top, width and height in pixels."""
    size: tuple[int, int] | None = None
    """Show the net every picture at this height and width; results have the picture's own size."""
    min_confidence: float = 0.0
    """Label what the net is less sure of, 0 to 1, as void (255)."""
    every: int = 1
    """Label every so many images or frames only."""
    alpha: float = 0.55
    """Weight of the colours in an overlay, 0 to 1."""
    contours: bool = False
    """Draw the borders between classes in an overlay."""
    legend: bool = True
    """Put a legend below an overlay."""
    blur: str = ""
    """Comma-separated classes to make unrecognisable in every picture, such as person,rider,car."""
    overwrite: bool = False
    """Replace results of an earlier run."""
    steady: bool = False
    """For frames of one video: average over time where the picture does not move, so that labels flicker less."""
    budget_ms: float | None = None
    """Milliseconds for each picture: the net sees as much of it as this machine can label in that time, and of a video
    or camera as many frames. What was chosen, and what it changes, is said."""
    raw: tuple[int, int] | None = None
    """Width and height of bare RGB frames on standard input."""
    fps: float | None = None
    """Frames a second of --raw, from 0.5 to 480. [25]"""
    video: Literal["webm", "mp4", "av1"] = "webm"
    """How videos are written: VP9 in WebM; H.264 in MP4, which every phone plays; or AV1 in MP4."""
    backend: AnyBackend = "auto"
    """What runs the net; auto is the fastest here that agrees with PyTorch, found out once for each weight file."""
    precision: AnyPrecision = "auto"
    """Arithmetic of the net; auto is the fastest here that agrees with fp32."""


def run(arguments: list[str]) -> None:
    options = parse(Predict, "segmv3 predict", arguments)
    options.import_parts()
    from segmv3.media.draw import Style
    from segmv3.prediction import chosen_kinds, predict_source, refuse_own_folder
    from segmv3.prediction.merging import read_merge
    from segmv3.prediction.sources import FrameSource, find_source
    from segmv3.screen import Screen

    kinds = chosen_kinds(_names(options.save))
    merge = read_merge(options.merge) if options.merge else None
    _refuse_odd(options, kinds, merge)
    refuse_own_folder(options.source, options.output)
    source = find_source(options.source, leave_out=options.output, raw=options.raw, fps=options.fps)
    console = Screen()
    seconds: list[float] = []  # of the net, per image or frame
    start, together = 0.0, 1

    @cache
    def opened() -> "tuple[Predictor, Labeller]":
        """The net, opened when it is first asked: what must be refused is refused before torch is imported."""
        nonlocal start
        progress.update(bar, description="getting the net ready")
        net = _net(options, console, together)
        label = _labeller(net, options, kinds, merge, isinstance(source, FrameSource), console)
        progress.update(bar, description="predict")
        start = time.perf_counter()
        return net, label

    def at_once(frames: "Frames") -> int:
        nonlocal together
        together = _at_once(options, frames)
        return together

    def label(image: "UInt8Array") -> "Found":
        begun = time.perf_counter()
        found = opened()[1](image)
        seconds.append(time.perf_counter() - begun)
        return found

    with console.progress() as progress:
        bar = progress.add_task("predict", total=None)
        written = predict_source(
            source,
            label,
            lambda: _classes(opened()[0], merge),
            options.output,
            save=kinds,
            overwrite=options.overwrite,
            video=options.video,
            style=Style(options.alpha, options.contours, options.legend, blur=_names(options.blur)),
            only=_names(options.classes),
            polygons=options.polygons,
            every=options.every,
            at_once=at_once,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    net, predict = opened()
    speed = _speed(seconds, time.perf_counter() - start, together)
    _tell_of_the_run(console, f"to {options.output} ({net.backend} {net.precision}{speed})", len(written), predict)


def _speed(seconds: "list[float]", total: float, together: int) -> str:
    """Of a run that labelled so many frames together; empty for a single one."""
    if len(seconds) < 2:
        return ""
    return f", {len(seconds) / total:.1f} a second, {sum(seconds) / total / together:.0%} of it in the net"


def _tell_of_the_run(console: "Screen", where: str, files: int, predict: "Labeller") -> None:
    console.say(f"wrote {files:,} file{'' if files == 1 else 's'} {where}")
    if predict.flicker:
        without, now = predict.flicker
        console.say(f"flicker: {without:.2%} of what does not move changes its label between frames, now {now:.2%}")


def _classes(net: "Predictor", merge: "Merge | None") -> "Classes":
    """Those that are written. The net comes first, for it knows whether its classes can be merged."""
    return merge.classes if merge else net.classes


def _refuse_odd(options: Predict, kinds: "Sequence[Kind]", merge: "Merge | None") -> None:
    """Raises: ConfigError for values that cannot be meant; OutputError for labels of other classes in the output."""
    from segmv3.prediction.adapting import check_crop

    if not 0 <= options.alpha <= 1:
        raise ConfigError(f"--alpha is {options.alpha:g}; it must be between 0 and 1")
    if not 0 <= options.min_confidence < 1:
        raise ConfigError(f"--min-confidence is {options.min_confidence:g}; it must be at least 0 and below 1")
    if options.budget_ms is not None and not 0 < options.budget_ms < 60_000:
        raise ConfigError(f"--budget-ms is {options.budget_ms:g}; it must be above 0 and below 60,000")
    if options.budget_ms and options.size:
        raise ConfigError("--size and --budget-ms both choose the size of the net's input; leave one of them out")
    if options.crop:
        check_crop(options.crop)
    if options.size:
        Settings(size=options.size).input_size()
    _refuse_by_classes(options, kinds, merge)


def _refuse_by_classes(options: Predict, kinds: "Sequence[Kind]", merge: "Merge | None") -> None:
    """What the names of the classes are enough for is refused before the net is opened, which takes seconds."""
    from segmv3.labels import announced_classes
    from segmv3.media.draw import Style
    from segmv3.prediction.contract import Job

    classes = merge.classes if merge else announced_classes(Path(options.weights or ""))
    if classes is None:
        return
    style = Style(blur=_names(options.blur))
    job = Job(classes, options.output, options.overwrite, style=style, only=_names(options.classes))
    _ = job.chosen, job.hidden
    for kind in kinds:
        kind.of_images(job, ())


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def _at_once(options: Predict, frames: "Frames") -> int:
    """How many frames are labelled at a time."""
    import torch

    from segmv3.prediction import frames_at_once
    from segmv3.runtime import use_device

    place = use_device(options.device, options.threads)
    if place.type != "cpu" or options.steady or options.budget_ms:  # the last two look back at the frame before
        return 1
    return frames_at_once(frames, torch.get_num_threads())


def _net(options: Predict, console: "Screen", together: int) -> "Predictor":
    """The net, for `together` pictures at a time that share the threads."""
    import torch

    from segmv3.runtime import load
    from segmv3.weights.names import default_net

    found = load(
        options.weights or default_net(console.say),
        backend=options.backend,
        threads=torch.get_num_threads() // together if together > 1 else options.threads,
        device=options.device,
        precision=options.precision,
        trust=options.trust,
    )
    _tell_of_the_net(found, options, console)
    return found


def _labeller(
    net: "Predictor", options: Predict, kinds: "Sequence[Kind]", merge: "Merge | None", frames: bool, console: "Screen"
) -> "Labeller":
    """Raises: ModelError where a kind needs the confidence and the file gives labels alone."""
    from segmv3.prediction.budget import Budgeted
    from segmv3.prediction.labeller import Labeller

    if any(kind.confidence == "needed" for kind in kinds):
        net.refuse_labels_alone()
    table = merge.table(net.classes) if merge else None
    return Labeller(
        net,
        confidence=net.output != "labels" and any(kind.confidence != "unused" for kind in kinds),
        size=options.size,
        budget=partial(Budgeted, milliseconds=options.budget_ms, say=console.say, frames=frames)
        if options.budget_ms
        else None,
        steady=options.steady,
        crop=options.crop,
        merge=table,
        least_confidence=options.min_confidence,
    )


def _tell_of_the_net(net: "Predictor", options: Predict, console: "Screen") -> None:
    """What a user of this net should know, each in one line."""
    from importlib.util import find_spec

    drawn = (net.card.facts.get("score") or {}).get("dataset") == "mini-city"
    folders = Path(options.source).resolve().parents
    if drawn and not any((folder / "mini-city.json").is_file() for folder in folders):
        console.say(
            "net: it has only seen drawn streets (mini-city) and will be wrong about real ones; without --weights, "
            "predict takes a net that knows them"
        )
    if options.backend == "auto" and net.device == "cpu" and not (find_spec("openvino") or find_spec("onnxruntime")):
        console.say("net: it runs on plain PyTorch; pip install 'segmv3[export]' makes it 1.5 to 2.6 times as fast")

"""`segmv3 predict`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from segmv3.commands.options import OnDevice, OwnParts, Trusting, parse
from segmv3.errors import ConfigError
from segmv3.evaluation.settings import Settings

if TYPE_CHECKING:
    from segmv3.images import UInt8Array
    from segmv3.labels import Classes
    from segmv3.prediction.contract import Found, Kind
    from segmv3.prediction.steady import Steady
    from segmv3.runtime import Predictor
    from segmv3.screen import Screen

    Label = Callable[[UInt8Array], Found]


@dataclass(frozen=True, kw_only=True)
class Predict(OnDevice, Trusting, OwnParts):
    """Label images, a video, a camera, a stream or the screen."""

    source: tyro.conf.Positional[str]
    """What to label: an image, a folder, a quoted glob, a sequence (frame_%04d.png), a .txt list of images, a video,
    the number of a camera (0), an address (rtsp://, rtmp://, http://, https://), screen, or - for standard input."""
    weights: str | None = None
    """Weight file, name of `segmv3 weights list`, or a file that segmv3 export wrote. By default the best published
    net for streets, downloaded once."""
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
    raw: tuple[int, int] | None = None
    """Width and height of bare RGB frames that come through standard input (-)."""
    video: Literal["webm", "mp4", "av1"] = "webm"
    """How videos are written: webm is VP9, mp4 is H.264, which every phone plays, av1 is AV1 in MP4. Sound is copied
    where the file can hold it: AAC in MP4, Opus in WebM."""
    backend: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What runs the net; auto is the fastest here that agrees with PyTorch, found out once for each weight file."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Arithmetic of the net; auto is the fastest here that agrees with fp32."""


def run(arguments: list[str]) -> None:
    options = parse(Predict, "segmv3 predict", arguments)
    options.import_parts()
    from segmv3.media.draw import Style
    from segmv3.prediction import chosen_kinds, predict_source
    from segmv3.prediction.adapting import check_crop, cropped, merged
    from segmv3.prediction.merging import read_merge
    from segmv3.prediction.sources import find_source
    from segmv3.screen import Screen

    kinds = chosen_kinds(_names(options.save))
    if not 0 <= options.alpha <= 1:
        raise ConfigError(f"--alpha is {options.alpha:g}; it must be between 0 and 1")
    if options.crop:
        check_crop(options.crop)
    if options.size:
        Settings(size=options.size).input_size()
    merge = read_merge(options.merge) if options.merge else None
    console = Screen()
    seconds: list[float] = []  # of the net, per image or frame
    start = 0.0

    @cache
    def net() -> "Predictor":
        """Opened when it is first asked: what must be refused is refused before torch is imported."""
        from segmv3.runtime import load

        nonlocal start
        progress.update(bar, description="getting the net ready")
        found = load(
            options.weights or _default_net(console),
            backend=options.backend,
            threads=options.threads,
            device=options.device,
            precision=options.precision,
            trust=options.trust,
        )
        _tell_of_the_net(found, options, console)
        progress.update(bar, description="predict")
        start = time.perf_counter()
        return found

    @cache
    def steady() -> "Steady":
        from segmv3.prediction.steady import Steady

        return Steady(net())

    @cache
    def classes() -> "tuple[Classes, UInt8Array | None]":
        """Those that are written, and the table that the net's are merged by."""
        return (merge.classes, merge.table(net().classes)) if merge else (net().classes, None)

    @cache
    def labeller() -> "Label":
        return _labeller(net(), steady() if options.steady else net(), options, kinds)

    def label(image: "UInt8Array") -> "Found":
        predict = labeller()
        begun = time.perf_counter()
        found = cropped(predict, options.crop, image) if options.crop else predict(image)
        seconds.append(time.perf_counter() - begun)
        table = classes()[1]
        return found if table is None else merged(found, table)

    with console.progress() as progress:
        bar = progress.add_task("predict", total=None)
        written = predict_source(
            find_source(options.source, raw=options.raw) if options.raw else options.source,
            label,
            lambda: classes()[0],
            options.output,
            save=kinds,
            overwrite=options.overwrite,
            video=options.video,
            style=Style(options.alpha, options.contours, options.legend, blur=_names(options.blur)),
            only=_names(options.classes),
            polygons=options.polygons,
            every=options.every,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    total = time.perf_counter() - start
    files = "1 file" if len(written) == 1 else f"{len(written):,} files"
    how = f"{net().backend} {net().precision}"
    if len(seconds) > 1:
        how += f", {len(seconds) / total:.1f} a second, {sum(seconds) / total:.0%} of the time in the net"
    console.say(f"wrote {files} to {options.output} ({how})")
    if options.steady:
        without, now = steady().flicker
        console.say(f"flicker: {without:.2%} of what does not move changes its label between frames, now {now:.2%}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def _labeller(net: "Predictor", source: "Predictor | Steady", options: Predict, kinds: "Sequence[Kind]") -> "Label":
    """From an image to its labels, and to the confidence where a kind shows it and the net has it.

    Raises: ModelError where a kind needs the confidence and the file gives labels alone.
    """
    import cv2
    import numpy as np
    import torch

    if any(kind.confidence == "needed" for kind in kinds):
        net.refuse_labels_alone()
    sure = net.output != "labels" and any(kind.confidence != "unused" for kind in kinds)
    size = Settings(size=options.size).input_size()
    if source is net and size is None:
        if not sure:
            return net
        label: Callable[[UInt8Array], Sequence[Any]] = net.labels_and_confidence
    else:
        from segmv3.evaluation.labelling import confident, single_scale

        alone = single_scale(source, size)
        by_tensor = confident(source, size) if sure else lambda image: (alone(image),)

        def label(image: "UInt8Array") -> Sequence[Any]:
            pixels = torch.from_numpy(np.require(image, requirements=["W"])).permute(2, 0, 1)[None]
            return [found[0].cpu().numpy() for found in by_tensor(pixels)]

    def both(image: "UInt8Array") -> "Found":
        labels, *confidence = label(image)
        return labels, cv2.convertScaleAbs(confidence[0], alpha=255) if confidence else None

    return both


def _default_net(console: "Screen") -> str:
    from segmv3.weights.names import DEFAULT, published

    entry = published()[DEFAULT]
    console.say(f"net: {DEFAULT} ({entry.accuracy}; {entry.licence}); --weights takes another")
    return DEFAULT


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
        console.say("net: it runs on plain PyTorch; pip install 'segmv3[export]' makes it about 1.5 times as fast")

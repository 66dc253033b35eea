"""`segmv3 predict`."""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from segmv3.commands.options import OnDevice, OwnParts, Trusting, parse

if TYPE_CHECKING:
    from segmv3.prediction.steady import Steady
    from segmv3.runtime import Predictor
    from segmv3.screen import Screen


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
    """Comma-separated kinds: overlay (colours over the image, with a legend), color (colours alone), labels
    (grey PNG of train ids)."""
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
    from segmv3.images import UInt8Array
    from segmv3.prediction import predict_source
    from segmv3.prediction.sources import find_source
    from segmv3.screen import Screen

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

    def label(image: UInt8Array) -> UInt8Array:
        predict = steady() if options.steady else net()
        begun = time.perf_counter()
        labels = predict(image)
        seconds.append(time.perf_counter() - begun)
        return labels

    with console.progress() as progress:
        bar = progress.add_task("predict", total=None)
        written = predict_source(
            find_source(options.source, raw=options.raw) if options.raw else options.source,
            label,
            lambda: net().classes,
            options.output,
            save=tuple(kind.strip() for kind in options.save.split(",")),
            overwrite=options.overwrite,
            video=options.video,
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

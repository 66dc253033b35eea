"""`segmv3 evaluate`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segmv3
from segmv3.commands.options import OnDevice, config_file, parse, refuse_existing, refuse_limit
from segmv3.config import Data, Model, Precision
from segmv3.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    import torch

    from segmv3.checkpoint import Card
    from segmv3.data.datasets import Dataset, Pair
    from segmv3.evaluation import ImageCounts, LabelsFunction, Processes
    from segmv3.images import UInt8Array
    from segmv3.inference import Size
    from segmv3.models.segmenter import Segmenter
    from segmv3.report import Sample
    from segmv3.screen import Screen
    from segmv3.uncertainty import Calibration

    Counted = tuple[ImageCounts, Calibration | None]
    """Of one image; the latter with --calibration."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnDevice):
    """Score weights on a split, at the size of its ground truth."""

    model: Model
    data: Data
    weights: Path
    """Weight file written by a run."""
    multi_scale_flip: bool = False
    """Average six scales and their mirror images, as in the mmsegmentation table."""
    sliding_window: tuple[int, int] | None = None
    """Run the net on overlapping windows of this height and width, and average their logits."""
    stride: tuple[int, int] | None = None
    """Rows and columns between windows; two thirds of the window by default."""
    official: bool = False
    """Also run the Cityscapes script on the predictions, and refuse to report when it disagrees."""
    boundary: bool = False
    """Also measure boundary IoU and boundary F-score."""
    calibration: bool = False
    """Also measure whether the net is right as often as it is sure (ECE); writes a plot beside --output."""
    report: Path | None = None
    """Also write a page with the worst images and the labels in doubt into this folder."""
    split: str = "val"
    """Part of the data set to score."""
    limit: int | None = None
    """Score only the first N images."""
    output: Path | None = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the files that --output and --report name."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""


def run(arguments: list[str]) -> None:
    """Score weights and print the scores; under torchrun every process takes its share of the images.

    Raises: DataError, ConfigError, CheckpointError, OutputError; OfficialError, EvaluationError for scores that
        cannot be trusted.
    """
    path, config, rest = config_file("evaluate", arguments)
    options = parse(
        Evaluate,
        f"segmv3 evaluate {path}",
        rest,
        {"model": config.model, "data": config.data},
    )
    from segmv3.evaluation import processes
    from segmv3.runtime import use_device
    from segmv3.screen import Screen

    device = use_device(options.device, options.threads)
    with processes(device) as group:
        console = Screen(quiet=group.rank > 0)
        dataset, model, card = group.agree(lambda: _open(options, writes=group.rank == 0))
        for word in group.agree(lambda: _words(options, dataset) if group.rank == 0 else []):
            console.say(word)
        with _predictions_folder(options, group) as folder:
            share = group.agree(lambda: _count(options, dataset, model.to(device), device, group, console, folder))
            shares = group.gather(share)
            group.agree(lambda: _finish(path, options, dataset, model, card, device, shares, console, folder))


def _open(options: Evaluate, *, writes: bool) -> tuple[Dataset, Segmenter, Card]:
    """Everything that can be wrong is looked at before the first image.

    Args: writes: this process will write the output; several that try the same folder would disturb each other.
    """
    from segmv3 import checkpoint, official
    from segmv3.evaluation import is_cityscapes, open_labelled
    from segmv3.files import make_folder
    from segmv3.weights.opening import open_segmenter

    output = options.output if writes else None
    if output:
        refuse_existing(output, options.overwrite)
    _refuse_calibration(options, writes=writes)
    if options.report and writes:
        _refuse_page(options.report, options.overwrite)
    dataset = open_labelled(options.data, options.split)
    model, card = open_segmenter(options.weights)
    checkpoint.check_net(card, model, options.model, dataset.classes, options.weights)
    refuse_limit(options.limit)
    _window(options)
    if options.official:
        if not is_cityscapes(dataset):
            raise ConfigError(f"--official is for data in Cityscapes layout, and {dataset.title} is not; leave it out")
        official.refuse_unscorable([pair.label for pair in dataset.pairs])
    if output:
        make_folder(output.parent)
    if options.report and writes:
        make_folder(options.report)
    return dataset, model, card


def _words(options: Evaluate, dataset: Dataset) -> list[str]:
    """What to know of a whole split's classes before its first image. Raises: DataError when nothing can be scored."""
    from segmv3.data.check import class_fault

    fault = None if options.limit else class_fault(dataset)
    if fault and fault[0] == "error":
        raise DataError(f"{options.data.root}: {fault[1]}")
    return [f"data: '{options.split}': {fault[1]}"] if fault else []


def _refuse_calibration(options: Evaluate, *, writes: bool) -> None:
    """Raises: ConfigError for flags that do not fit, OutputError when the plot exists."""
    if not options.calibration:
        return
    if options.multi_scale_flip or options.sliding_window:
        raise ConfigError("--calibration is for single scale; leave out --multi-scale-flip and --sliding-window")
    if not options.output:
        raise ConfigError("--calibration needs --output FILE.json; its plot is written beside that file")
    if writes:
        refuse_existing(_plot(options.output), options.overwrite)


def _plot(output: Path) -> Path:
    return output.with_name(f"{output.stem}-reliability.png")


def _refuse_page(folder: Path, overwrite: bool) -> None:
    """Raises: OutputError when a page would be replaced."""
    page = folder / "evaluation.html"
    if page.exists() and not overwrite:
        raise OutputError(f"{page} exists; choose another --report or add --overwrite")


def _window(options: Evaluate) -> tuple[Size, Size] | None:
    """Window and stride, when windows were asked for. Raises: ConfigError for flags or sizes that do not fit."""
    from segmv3.inference import check_window, default_stride

    if options.sliding_window is None:
        if options.stride:
            raise ConfigError("--stride needs --sliding-window HEIGHT WIDTH")
        return None
    if options.multi_scale_flip:
        raise ConfigError("--multi-scale-flip and --sliding-window are two ways to score; choose one of them")
    stride = options.stride or default_stride(options.sliding_window)
    check_window(options.sliding_window, stride)
    return options.sliding_window, stride


@contextmanager
def _predictions_folder(options: Evaluate, group: Processes) -> Iterator[Path | None]:
    """One temporary folder for the predictions of all processes; None when nobody needs them."""
    if not options.official:
        yield None
        return
    folder = group.broadcast(Path(tempfile.mkdtemp(prefix="segmv3-official-")) if group.rank == 0 else Path())
    try:
        yield folder
    finally:
        if group.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _count(
    options: Evaluate,
    dataset: Dataset,
    model: Segmenter,
    device: torch.device,
    group: Processes,
    console: Screen,
    folder: Path | None,
) -> list[Counted]:
    """Run the net over this process's share of the images."""

    from segmv3 import official
    from segmv3.data.loader import shard
    from segmv3.evaluation import count_images, has_instances

    confident = _Confident(model) if options.calibration else None
    calibrations: list[Calibration] = []

    def keep(pair: Pair, labels: UInt8Array) -> None:
        if folder:
            official.write_prediction(folder, pair.name, labels)
        if confident:
            calibrations.append(confident.judge(pair, labels))

    mine = shard(min(options.limit or len(dataset), len(dataset)), group.rank, group.count)
    counted = count_images(
        confident or _labels_of(options, model),
        dataset,
        device=device,
        precision=options.precision,
        indices=mine,
        boundary=options.boundary,
        instances=has_instances(dataset),
        keep=keep,
    )
    with console.progress() as progress:
        images = list(progress.track(counted, total=len(mine), description=f"evaluate {options.split}"))
    return list(zip(images, calibrations if confident else [None] * len(images), strict=True))


def _labels_of(options: Evaluate, model: Segmenter) -> LabelsFunction:
    """The net in the way that the flags ask for."""
    from segmv3.evaluation import multi_scale, single_scale, sliding

    if window := _window(options):
        return sliding(model, *window)
    return multi_scale(model) if options.multi_scale_flip else single_scale(model)


class _Confident:
    """The net at single scale, which also remembers how sure it was of the last image."""

    def __init__(self, model: Segmenter) -> None:
        self.model = model

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """As `segmv3.evaluation.single_scale`."""
        from segmv3.decode import label_map_and_confidence

        size = (image.shape[2], image.shape[3])
        labels, confidence = label_map_and_confidence(self.model.low_logits(image), size)
        self.confidence = confidence[0]
        return labels

    def judge(self, pair: Pair, labels: UInt8Array) -> Calibration:
        """Compare the last image's labels with the truth."""
        from segmv3.images import read_ids
        from segmv3.labels import IGNORE
        from segmv3.uncertainty import Calibration

        truth = pair.table.to_train_ids(read_ids(pair.label), pair.label)
        known, calibration = truth != IGNORE, Calibration()
        calibration.add(self.confidence.cpu().numpy()[known], (labels == truth)[known])
        return calibration


def _finish(
    path: Path,
    options: Evaluate,
    dataset: Dataset,
    model: Segmenter,
    card: Card,
    device: torch.device,
    shares: list[list[Counted]],
    console: Screen,
    folder: Path | None,
) -> None:
    """On the first process: add up, compare, print and write."""
    if not shares:
        return
    from segmv3.evaluation import merge, scores_of_images
    from segmv3.files import write_bytes
    from segmv3.images import write_png
    from segmv3.report.plots import LIGHT
    from segmv3.report.reliability import reliability
    from segmv3.report.tables import categories_table, cities_table, scores_table, summary

    images = merge(
        [[image for image, _ in share] for share in shares], dataset, min(options.limit or len(dataset), len(dataset))
    )
    if not any(image.confusion for image in images):
        raise DataError(f"no pixel of '{options.split}' is labelled: there is nothing to score")
    result = scores_of_images(images, dataset, multi_scale_flip=options.multi_scale_flip)
    if window := _window(options):
        result |= {"sliding_window": list(window[0]), "stride": list(window[1])}
    if folder:
        result["official"] = _compare(dataset, images, result, folder, console)
    result["miou_interval"] = _interval(result)
    if options.calibration:
        result["calibration"] = _calibration(shares)
    result |= {
        "config": str(path),
        "weights": str(options.weights),
        "weights_sha256": card.sha256,
        "origin": card.facts.get("origin"),
        "precision": options.precision,
        "device": device.type,
        "processes": len(shares),
        "segmv3": segmv3.__version__,
    }
    if options.output:  # before anything is shown: a terminal that fails must not cost the scores
        if options.calibration:
            write_png(_plot(options.output), reliability(result["calibration"], LIGHT))
        write_bytes(options.output, _as_json(result).encode())
    console.print(scores_table(result))
    if "categories" in result:
        console.print(categories_table(result))
    if len(result.get("cities", ())) > 1:
        console.print(cities_table(result))
    for line in summary(result):
        console.say(line)
    console.say(f"weights {options.weights}, SHA-256 {card.sha256}")
    if options.calibration:
        measured = result["calibration"]
        console.say(
            f"ECE {measured['ece']:.2f} % over {measured['pixels']:,} labelled pixels: mean confidence "
            f"{measured['confidence']:.2f} %, pixel accuracy {measured['accuracy']:.2f} %"
        )
    if options.report:
        _write_page(options, options.report, result, dataset, model.to(device), device, console)


def _interval(result: dict[str, Any]) -> list[float] | None:
    """95 % interval of mIoU; None for so few images that it would be too narrow to be one."""
    from segmv3.uncertainty import FEWEST_IMAGES, as_result, bootstrap_miou

    few = result["images"] < FEWEST_IMAGES
    return None if few else list(bootstrap_miou(as_result(result, "the evaluation").counts))


def _calibration(shares: Sequence[Sequence[Counted]]) -> dict[str, Any]:
    """Of all images; summed in the order of the data set, so that any sharing gives the same digits."""
    from segmv3.uncertainty import Calibration

    total = Calibration()
    for _, own in sorted((pair for share in shares for pair in share), key=lambda pair: pair[0].index):
        assert own
        total.merge(own)
    return total.to_dict()


def _write_page(
    options: Evaluate,
    folder: Path,
    result: dict[str, Any],
    dataset: Dataset,
    model: Segmenter,
    device: torch.device,
    console: Screen,
) -> None:
    """Write the page; the net runs again, over the images that are shown."""

    from segmv3.evaluation import count_images
    from segmv3.report import Sample, write_evaluation_page

    places = {pair.name: place for place, pair in enumerate(dataset.pairs)}

    def samples_of(names: Sequence[str]) -> Iterator[Sample]:
        predictions: list[UInt8Array] = []
        counted = count_images(
            _labels_of(options, model),
            dataset,
            device=device,
            precision=options.precision,
            indices=[places[name] for name in names],
            keep=lambda _, labels: predictions.append(labels),
        )
        with console.progress() as progress:
            for image in progress.track(counted, total=len(names), description="draw the page"):
                yield Sample(image.name, *dataset.read(image.index), predictions.pop())

    page = write_evaluation_page(folder, result, dataset.classes, samples_of)
    console.say(f"report {page}")


def _compare(
    dataset: Dataset, images: list[ImageCounts], result: dict[str, Any], folder: Path, console: Screen
) -> dict[str, Any]:
    """Let the Cityscapes script score the predictions too. Raises: OfficialError when it finds something else."""

    from segmv3 import official

    predictions = [official.prediction_file(folder, image.name) for image in images]
    missing = next((path for path in predictions if not path.is_file()), None)
    if missing:
        raise DataError(f"{missing} was written on another machine; --official needs all processes on one")
    with console.progress() as progress:
        bar = progress.add_task("Cityscapes script", total=len(images))
        said = official.script_scores(
            predictions,
            [dataset.pairs[image.index].label for image in images],
            lambda done, _: progress.update(bar, completed=done),
        )
    return official.agreement(said, result)


def _as_json(result: dict[str, Any]) -> str:
    """Indented JSON, but each image on one line: indented, their counts would take a line a number."""
    rest = json.dumps({key: value for key, value in result.items() if key != "per_image"}, indent=2)
    images = ",\n".join(f"    {json.dumps(image)}" for image in result["per_image"])
    return f'{rest[:-2]},\n  "per_image": [\n{images}\n  ]\n}}\n'

"""`segmv3 evaluate`."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segmv3
from segmv3.commands.options import OnDevice, Resizing, Trusting, config_file, parse, refuse_existing, refuse_limit
from segmv3.config import Data, Model, Precision
from segmv3.errors import ConfigError, DataError, ModelError, OutputError, PartialOutputError, Segmv3Error

if TYPE_CHECKING:
    import torch

    from segmv3.data.datasets import Dataset, Pair
    from segmv3.evaluation.counting import ImageCounts
    from segmv3.evaluation.labelling import InputSize, LabelsFunction, Net
    from segmv3.evaluation.processes import Processes
    from segmv3.images import UInt8Array
    from segmv3.inference import Size
    from segmv3.report import Sample
    from segmv3.results.calibration import Calibration
    from segmv3.runtime import Predictor
    from segmv3.screen import Screen

    Counted = tuple[ImageCounts, Calibration | None]
    """Of one image; the latter with --calibration."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnDevice, Resizing, Trusting):
    """Score weights on a split, at the size of its ground truth."""

    model: Model
    data: Data
    weights: Path
    """Weight file written by a run, or a file that segmv3 export wrote."""
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
    precision: Precision | None = None
    """Arithmetic of the net; fp32 by default, and an export's own."""


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
    from segmv3.evaluation.processes import processes
    from segmv3.runtime import use_device
    from segmv3.runtime.loading import is_export
    from segmv3.screen import Screen

    cpu = is_export(options.weights) and options.device == "auto"
    device = use_device("cpu" if cpu else options.device, options.threads)
    with processes(device) as group:
        console = Screen(quiet=group.rank > 0)
        dataset, net = group.agree(lambda: _open(options, device, writes=group.rank == 0))
        for word in group.agree(lambda: _words(options, dataset) if group.rank == 0 else []):
            console.say(word)
        with _predictions_folder(options, group) as folder:
            share = group.agree(lambda: _count(options, dataset, net, group, console, folder))
            shares = group.gather(share)
            group.agree(lambda: _finish(path, options, dataset, net, shares, console, folder))


@dataclass(frozen=True)
class Scored:
    """A net that is ready to be scored."""

    net: Net
    device: torch.device
    precision: Precision
    """Of torch's autocast; an export calculates as it was made to."""
    facts: dict[str, Any]
    """Of the result file: which net it was, and what ran it."""
    export: Predictor | None = None


def _open(options: Evaluate, device: torch.device, *, writes: bool) -> tuple[Dataset, Scored]:
    """Everything that can be wrong is looked at before the first image.

    Args: writes: this process will write the output; several that try the same folder would disturb each other.
    """
    from segmv3 import official
    from segmv3.evaluation.counting import is_cityscapes, open_labelled
    from segmv3.files import make_folder

    output = options.output if writes else None
    if output:
        refuse_existing(output, options.overwrite)
    _refuse_calibration(options, writes=writes)
    if options.report and writes:
        _refuse_page(options.report, options.overwrite)
    refuse_limit(options.limit)
    _window(options)
    dataset = open_labelled(options.data, options.split)
    net = _open_net(options, dataset, device)
    if options.official:
        if not is_cityscapes(dataset):
            raise ConfigError(f"--official is for data in Cityscapes layout, and {dataset.title} is not; leave it out")
        official.refuse_unscorable([pair.label for pair in dataset.pairs])
    if output:
        make_folder(output.parent)
    if options.report and writes:
        make_folder(options.report)
    return dataset, net


def _open_net(options: Evaluate, dataset: Dataset, device: torch.device) -> Scored:
    """The net of --weights. Raises: CheckpointError or ModelError for one that does not fit the data or the flags."""
    from segmv3 import checkpoint
    from segmv3.runtime.loading import is_export, load
    from segmv3.weights.opening import open_segmenter

    path = options.weights
    if not is_export(path):
        model, card = open_segmenter(path)
        card = checkpoint.in_order(card, model, dataset.classes, path)
        checkpoint.check_net(card, model, options.model, dataset.classes, path)
        precision: Precision = options.precision or "fp32"
        facts = {"weights_sha256": card.sha256, "origin": card.facts.get("origin"), "precision": precision}
        return Scored(model.to(device), device, precision, facts)
    predict = load(
        path,
        threads=options.threads,
        device=options.device,
        precision=options.precision or "auto",
        trust=options.trust,
    )
    checkpoint.check_classes(predict.card, dataset.classes, path)
    _refuse_export(options, predict, dataset)
    return Scored(predict, device, "fp32", _facts_of_export(path, predict), predict)


def _facts_of_export(path: Path, predict: Predictor) -> dict[str, Any]:
    from segmv3.convert.receipt import files_of

    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files_of(path))).hexdigest()
    return {
        "weights_sha256": digest,
        "origin": predict.card.facts.get("origin"),
        "precision": predict.precision,
        "runtime": predict.backend,
        "export": {"output": predict.output, "size": predict.size, "source_sha256": predict.card.sha256},
    }


def _refuse_export(options: Evaluate, predict: Predictor, dataset: Dataset) -> None:
    """Raises: ModelError for a file that does not give what the flags need, or takes images of another size."""
    resized = options.input_size()
    flags: dict[str, Any] = {"multi_scale_flip": options.multi_scale_flip, "sliding_window": options.sliding_window}
    flags |= {"calibration": options.calibration, "size": options.size, "scale": options.scale}
    needs = next((f"--{name.replace('_', '-')}" for name, value in flags.items() if value), "")
    if predict.output == "labels" and needs:
        raise ModelError(
            f"{options.weights} gives labels alone, and {needs} needs logits; export with --output-kind low-logits"
        )
    if not predict.size:
        return
    only = f"{options.weights} takes images of {predict.size[0]}x{predict.size[1]} (height x width) only"
    if options.multi_scale_flip:
        raise ModelError(f"{only}, and --multi-scale-flip shows it six sizes; export it without --size")
    image = dataset.read(0)[0].shape[:2]
    shown = options.sliding_window or (resized(image) if resized else image)
    if tuple(shown) != predict.size:
        height, width = predict.size
        raise ModelError(f"{only}, not of {shown[0]}x{shown[1]}; score it with --size {height} {width}")


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

    options.input_size()  # looked at here, too
    if options.sliding_window is None:
        if options.stride:
            raise ConfigError("--stride needs --sliding-window HEIGHT WIDTH")
        return None
    if options.multi_scale_flip:
        raise ConfigError("--multi-scale-flip and --sliding-window are two ways to score; choose one of them")
    if options.input_size():
        raise ConfigError("--sliding-window cuts images as they are; leave out --size and --scale")
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
    net: Scored,
    group: Processes,
    console: Screen,
    folder: Path | None,
) -> list[Counted]:
    """Run the net over this process's share of the images."""

    from segmv3 import official
    from segmv3.data.loader import shard
    from segmv3.evaluation.counting import count_images, has_instances

    confident = _Confident(net.net, options.input_size()) if options.calibration else None
    calibrations: list[Calibration] = []

    def keep(pair: Pair, labels: UInt8Array) -> None:
        if folder:
            official.write_prediction(folder, pair.name, labels)
        if confident:
            calibrations.append(confident.judge(pair, labels))

    mine = shard(min(options.limit or len(dataset), len(dataset)), group.rank, group.count)
    counted = count_images(
        confident or _labels_of(options, net),
        dataset,
        device=net.device,
        precision=net.precision,
        indices=mine,
        boundary=options.boundary,
        instances=has_instances(dataset),
        keep=keep,
    )
    with console.progress() as progress:
        images = list(progress.track(counted, total=len(mine), description=f"evaluate {options.split}"))
    return list(zip(images, calibrations if confident else [None] * len(images), strict=True))


def _labels_of(options: Evaluate, net: Scored) -> LabelsFunction:
    """The net in the way that the flags ask for."""
    from segmv3.evaluation.labelling import multi_scale, single_scale, sliding

    if net.export and net.export.output == "labels":
        return net.export.labels_of
    if window := _window(options):
        return sliding(net.net, *window)
    return (multi_scale if options.multi_scale_flip else single_scale)(net.net, options.input_size())


class _Confident:
    """The net at single scale, which also remembers how sure it was of the last image."""

    def __init__(self, net: Net, input_size: InputSize | None) -> None:
        from segmv3.evaluation.labelling import confident

        self._run = confident(net, input_size)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """As `segmv3.evaluation.labelling.single_scale`."""
        labels, confidence = self._run(image)
        self.confidence = confidence[0]
        return labels

    def judge(self, pair: Pair, labels: UInt8Array) -> Calibration:
        """Compare the last image's labels with the truth."""
        from segmv3.images import read_ids
        from segmv3.labels import IGNORE
        from segmv3.results.calibration import Calibration

        truth = pair.table.to_train_ids(read_ids(pair.label), pair.label)
        known, calibration = truth != IGNORE, Calibration()
        calibration.add(self.confidence.cpu().numpy()[known], (labels == truth)[known])
        return calibration


def _finish(
    path: Path,
    options: Evaluate,
    dataset: Dataset,
    net: Scored,
    shares: list[list[Counted]],
    console: Screen,
    folder: Path | None,
) -> None:
    """On the first process: add up, compare, write and print.

    The result file comes first, and each output is tried whatever became of those before it: none costs another.
    """
    if not shares:
        return
    from segmv3.files import write_bytes
    from segmv3.images import write_png
    from segmv3.report.plots import LIGHT
    from segmv3.report.reliability import reliability

    result = _result(path, options, dataset, net, shares, console, folder)
    outputs: dict[str, Callable[[], object]] = {}
    if file := options.output:
        outputs["result"] = lambda: write_bytes(file, _as_json(result).encode())
    outputs["tables"] = lambda: _show(result, console)
    if file and options.calibration:
        outputs["plot"] = lambda: write_png(_plot(file), reliability(result["calibration"], LIGHT))
    if page := options.report:
        outputs["report"] = lambda: _write_page(options, page, result, dataset, net, console)
    failed: dict[str, Exception] = {}
    for name, write in outputs.items():
        try:
            write()
        except Exception as error:  # drawing and printing can fail in any way
            failed[name] = error
    if "result" in failed:
        raise failed["result"]
    for name, why in failed.items():
        text = str(why) if isinstance(why, Segmv3Error) else f"{type(why).__name__}: {why}"
        where = f"the scores are in {file}" if file else "the scores are above" if name != "tables" else "add --output"
        raise PartialOutputError(f"the {name} failed ({' '.join(text.split())[:300]}); {where}") from why


def _result(
    path: Path,
    options: Evaluate,
    dataset: Dataset,
    net: Scored,
    shares: list[list[Counted]],
    console: Screen,
    folder: Path | None,
) -> dict[str, Any]:
    """The content of the result file. Raises: DataError, EvaluationError or OfficialError instead of a false score."""
    from segmv3.evaluation.counting import merge
    from segmv3.evaluation.scores import scores_of_images

    images = merge(
        [[image for image, _ in share] for share in shares], dataset, min(options.limit or len(dataset), len(dataset))
    )
    if not any(image.confusion for image in images):
        raise DataError(f"no pixel of '{options.split}' is labelled: there is nothing to score")
    result = scores_of_images(images, dataset, multi_scale_flip=options.multi_scale_flip)
    if window := _window(options):
        result |= {"sliding_window": list(window[0]), "stride": list(window[1])}
    if resized := options.input_size():
        sizes = {resized(image.size) for image in images}
        result |= {"input_size": list(sizes.pop()) if len(sizes) == 1 else None, "input_scale": options.scale}
    if folder:
        result["official"] = _compare(dataset, images, result, folder, console)
    result["miou_interval"] = _interval(result)
    if options.calibration:
        result["calibration"] = _calibration(shares)
    return result | {
        "config": str(path),
        "weights": str(options.weights),
        **net.facts,
        "device": net.device.type,
        "processes": len(shares),
        "segmv3": segmv3.__version__,
    }


def _show(result: dict[str, Any], console: Screen) -> None:
    from segmv3.report.tables import categories_table, cities_table, scores_table, summary

    console.print(scores_table(result))
    if "categories" in result:
        console.print(categories_table(result))
    if len(result.get("cities", ())) > 1:
        console.print(cities_table(result))
    for line in summary(result):
        console.say(line)
    console.say(f"weights {result['weights']}, SHA-256 {result['weights_sha256']}")
    if measured := result.get("calibration"):
        console.say(
            f"ECE {measured['ece']:.2f} % over {measured['pixels']:,} labelled pixels: mean confidence "
            f"{measured['confidence']:.2f} %, pixel accuracy {measured['accuracy']:.2f} %"
        )


def _interval(result: dict[str, Any]) -> list[float] | None:
    """95 % interval of mIoU; None for so few images that it would be too narrow to be one."""
    from segmv3.results.result import as_result
    from segmv3.results.uncertainty import FEWEST_IMAGES, bootstrap_miou

    few = result["images"] < FEWEST_IMAGES
    return None if few else list(bootstrap_miou(as_result(result, "the evaluation").counts))


def _calibration(shares: Sequence[Sequence[Counted]]) -> dict[str, Any]:
    """Of all images; summed in the order of the data set, so that any sharing gives the same digits."""
    from segmv3.results.calibration import Calibration

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
    net: Scored,
    console: Screen,
) -> None:
    """Write the page; the net runs again, over the images that are shown."""

    from segmv3.evaluation.counting import count_images
    from segmv3.report import Sample, write_evaluation_page

    places = {pair.name: place for place, pair in enumerate(dataset.pairs)}

    def samples_of(names: Sequence[str]) -> Iterator[Sample]:
        predictions: list[UInt8Array] = []
        counted = count_images(
            _labels_of(options, net),
            dataset,
            device=net.device,
            precision=net.precision,
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

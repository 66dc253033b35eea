"""`segmv3 detect`: boxes around objects."""

import warnings
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import segmv3
from segmv3.commands.options import (
    OnDevice,
    OwnParts,
    config_file,
    given,
    parse,
    refuse_existing,
    refuse_limit,
    run_one_of,
    spread,
)
from segmv3.config import Detector, Schedule, find_config
from segmv3.detection.settings import BoxData, Detection
from segmv3.errors import CheckpointError, ConfigError, Segmv3Warning

if TYPE_CHECKING:
    from segmv3.detection.predictor import BoxPredictor
    from segmv3.images import UInt8Array


@dataclass(frozen=True, kw_only=True)
class Train(OnDevice):
    """Train a detector, or go on with a run where it stopped."""

    config: Annotated[Detection, tyro.conf.arg(name="")]
    run: Path
    """Folder of the run."""
    extend: bool = False
    """Allow more --schedule.steps than the run was started with; the rate goes on along the new schedule."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnDevice):
    """mAP on a split, by COCO's own script; mIoU too of a net with areas."""

    data: BoxData
    weights: str
    """Weight file of a detector, or a published name."""
    split: str = "val"
    """Part of the data set to score."""
    size: tuple[int, int] | None = None
    """Height and width at which the net sees images; by default as in its training."""
    limit: int | None = None
    """Score only N images, evenly spaced."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the file that --output names."""


@dataclass(frozen=True, kw_only=True)
class Predict(OnDevice, OwnParts):
    """Draw boxes on images or a video, and areas where the net labels them; write the boxes as COCO's JSON."""

    source: tyro.conf.Positional[str]
    """An image, a folder, a quoted glob, a .txt list of images, a video, a camera, as for segmv3 predict."""
    weights: str
    """Weight file of a detector, or a published name."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("boxes")
    """Folder for the results."""
    score: float = 0.4
    """Leave out boxes that the net is less sure of, 0 to 1."""
    size: tuple[int, int] | None = None
    """Height and width at which the net sees images; by default as in its training."""
    every: int = 1
    """Look at every so many images or frames only."""
    labels: bool = False
    """Also write the label of every pixel, of a net with areas, as segmv3 predict --save labels does."""
    overwrite: bool = False
    """Replace results of an earlier run."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a data set of boxes holds, and all that is wrong with it."""

    data: Annotated[BoxData, tyro.conf.arg(name="data")]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Write the boxes of a data set in Cityscapes' layout, made of its instances, as boxes_SPLIT.json into it."""

    root: tyro.conf.Positional[Path]
    """The folder that holds leftImg8bit and gtFine."""
    splits: tuple[str, ...] = ("train", "val")
    """The splits."""
    overwrite: bool = False
    """Replace files of an earlier run."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The detectors of the MobileNetV3 paper: what they take here, beside the published figures."""


def run(arguments: list[str]) -> None:
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "check": _check,
        "prepare": _prepare,
        "models": _models,
    }
    usage = "train CONFIG | evaluate CONFIG --weights FILE | predict SOURCE --weights FILE | check CONFIG | "
    usage += "prepare CITYSCAPES | models"
    run_one_of("detect", commands, usage, arguments)


def _config(command: str, arguments: list[str]) -> tuple[Path, Detection, list[str]]:
    """The config file of a command, what is in it, and the flags after it."""
    data = BoxData(root=Path("data/mini-city"))
    plain = Detection(model=Detector(), data=data, schedule=Schedule(steps=100_000))
    return config_file(f"detect {command}", arguments, plain, "configs/detect/quickstart.py")


def _train(arguments: list[str]) -> None:
    path, config, rest = _config("train", arguments)
    defaults = {"config": config, "run": Path("runs") / f"detect-{path.stem}"}
    options = parse(Train, f"segmv3 detect train {path}", rest, defaults)
    from segmv3.training.loop import train

    train(options.config, options.run, config_file=find_config(path), **given(options, "device", "threads", "extend"))


def _evaluate(arguments: list[str]) -> None:
    path, config, rest = _config("evaluate", arguments)
    options = parse(Evaluate, f"segmv3 detect evaluate {path}", rest, {"data": config.data})
    if options.output:
        refuse_existing(options.output, options.overwrite)
    refuse_limit(options.limit)
    _refuse_size(options.size)
    from segmv3.checkpoint import check_classes
    from segmv3.detection.coco import open_boxes
    from segmv3.detection.predictor import load_detector
    from segmv3.detection.scoring import area_scores, average_precisions, count_boxes, import_coco
    from segmv3.detection.tables import scores_table, summary
    from segmv3.files import make_folder, write_json
    from segmv3.metrics import ConfusionMatrix
    from segmv3.screen import Screen

    import_coco()
    boxes = open_boxes(options.data, options.split)
    net = load_detector(options.weights, **given(options, "device", "threads", "size"))
    if net.net.areas and not boxes.areas:
        raise ConfigError(f"{options.weights} labels areas too: say with --data.areas where their labels are")
    if boxes.areas and not net.net.areas:
        raise CheckpointError(f"{options.weights} draws boxes alone; score it with --data.areas None")
    pixels = ConfusionMatrix(len(boxes.classes)) if boxes.areas else None
    check_classes(net.card, boxes.classes, Path(options.weights))
    console, indices = Screen(), spread(len(boxes), options.limit)
    with console.bars() as tell:
        told = partial(tell, f"evaluate {options.split}")
        where: dict[str, Any] = {"device": net.device, "indices": indices, "confusion": pixels, "progress": told}
        rows = count_boxes(net.net, boxes, net.size, **where)
    scores = average_precisions(rows, boxes, indices) | (area_scores(pixels, boxes.classes) if pixels else {})
    scores |= {
        "size": list(net.size),
        "weights": str(options.weights),
        "weights_sha256": net.card.sha256,
        "segmv3": segmv3.__version__,
    }
    if options.output:
        make_folder(options.output.parent)
        write_json(options.output, scores, indent=2)
    console.print(scores_table(scores))
    console.say(summary(scores))
    console.say(f"weights {options.weights}, SHA-256 {net.card.sha256}")


def _refuse_size(size: tuple[int, int] | None) -> None:
    if size and not all(32 <= side <= 8192 for side in size):
        raise ConfigError(f"--size {size[0]} {size[1]}: both sides must lie between 32 and 8192")


def _predict(arguments: list[str]) -> None:
    options = parse(Predict, "segmv3 detect predict", arguments)
    if not 0 <= options.score < 1:
        raise ConfigError(f"--score is {options.score:g}; it must be at least 0 and below 1")
    _refuse_size(options.size)
    options.import_parts()
    from segmv3.detection.drawing import CocoBoxes, DrawnBoxes
    from segmv3.prediction import predict_source
    from segmv3.prediction.contract import Objects
    from segmv3.prediction.results import Labels
    from segmv3.screen import Screen

    found = {"boxes": 0, "images": 0}

    @cache
    def opened() -> "BoxPredictor":
        """The net, opened when it is first asked: what must be refused is refused before torch is imported."""
        from segmv3.detection.predictor import load_detector

        net = load_detector(options.weights, **given(options, "device", "threads", "size"))
        if options.labels and not net.net.areas:
            raise CheckpointError(f"{options.weights} draws boxes alone; leave out --labels")
        return net

    def look(image: "UInt8Array") -> Objects:
        rows, labels = opened().look(image, options.score)
        found["boxes"], found["images"] = found["boxes"] + len(rows), found["images"] + 1
        return Objects(rows, labels)

    console = Screen()
    with console.bars() as tell:
        written = predict_source(
            options.source,
            look,
            lambda: opened().card.classes,
            options.output,
            save=[DrawnBoxes(), CocoBoxes(), *([Labels()] if options.labels else [])],
            overwrite=options.overwrite,
            every=options.every,
            progress=partial(tell, "detect"),
        )
    console.say(
        f"found {found['boxes']:,} boxes in {found['images']:,} pictures with a score of at least {options.score:g}; "
        f"wrote {len(written):,} files to {options.output}"
    )


def _check(arguments: list[str]) -> None:
    path, config, rest = _config("check", arguments)
    options = parse(Check, f"segmv3 detect check {path}", rest, {"data": config.data})
    from segmv3.detection.coco import check_images, check_same_classes, describe, open_boxes
    from segmv3.screen import Screen

    console, sets = Screen(), [open_boxes(options.data, split) for split in ("train", "val")]
    check_same_classes(*sets)
    with console.bars() as tell:
        for boxes in sets:
            check_images(boxes, partial(tell, f"check {boxes.split}"))
    for boxes in sets:
        for line in describe(boxes):
            console.say(line)
    shared = set(sets[0].names) & set(sets[1].names) if sets[0].folder == sets[1].folder else set()
    if shared:
        text = f"data: {len(shared):,} images are in both train and val (first: {min(shared)})"
        warnings.warn(Segmv3Warning(text), stacklevel=1)


def _prepare(arguments: list[str]) -> None:
    options = parse(Prepare, "segmv3 detect prepare", arguments)
    files = {split: options.root / f"boxes_{split}.json" for split in options.splits}
    for file in files.values():
        refuse_existing(file, options.overwrite)
    from segmv3.files import write_json
    from segmv3.official import coco_boxes
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as tell:
        for split, file in files.items():
            content = coco_boxes(options.root, split, partial(tell, f"boxes of {split}"))
            write_json(file, content)
            console.say(f"wrote {file}: {len(content['annotations']):,} boxes in {len(content['images']):,} images")


def _models(arguments: list[str]) -> None:
    parse(Models, "segmv3 detect models", arguments)
    from segmv3.detection.tables import detectors_table
    from segmv3.screen import Screen

    Screen().print(detectors_table())

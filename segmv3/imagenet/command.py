"""`segmv3 classify`: the nets as ImageNet classifiers."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

import segmv3
from segmv3.commands.options import (
    OnDevice,
    Trusting,
    config_file,
    given,
    parse,
    refuse_existing,
    refuse_limit,
    run_one_of,
    spread,
)
from segmv3.config import AnyBackend, Classifier, Precision, Schedule, find_config, load_config
from segmv3.errors import ConfigError, Segmv3Warning
from segmv3.imagenet.settings import Classification, ImageFolder


@dataclass(frozen=True, kw_only=True)
class Train(OnDevice):
    """Train a backbone to classify pictures, or go on with a run where it stopped."""

    config: Annotated[Classification, tyro.conf.arg(name="")]
    run: Path
    """Folder of the run."""
    extend: bool = False
    """Allow more --schedule.steps than the run was started with; the rate goes on along the new schedule."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnDevice, Trusting):
    """Top-1 and top-5 on a split of a folder of pictures."""

    data: ImageFolder
    weights: str
    """Weight file, published name or exported file of a classifier."""
    split: str = "val"
    """Part of the data set to score."""
    limit: int | None = None
    """Score only N images, evenly spaced."""
    output: Path | None = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the file that --output names."""
    precision: Precision | None = None
    """Arithmetic of the net; by default fp32, or an exported file's own."""
    backend: AnyBackend = "auto"
    """The runtime of an exported file; by default its own."""


@dataclass(frozen=True, kw_only=True)
class Predict(OnDevice, Trusting):
    """Name what is in pictures, seen as in the net's training."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    weights: str
    """Weight file, published name or exported file of a classifier."""
    top: int = 5
    """Classes to print for each picture."""
    backend: AnyBackend = "auto"
    """The runtime of an exported file; by default its own."""


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Sort loose pictures, such as ImageNet's validation pictures, into one folder a class. They are linked."""

    pictures: tyro.conf.Positional[Path]
    """Folder of the pictures."""
    labels: Path
    """CSV of picture and class (ImageNet's LOC_val_solution.csv is one), or the unpacked development kit."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The new folder, such as data/imagenet/val."""


def run(arguments: list[str]) -> None:
    commands = {"train": _train, "evaluate": _evaluate, "predict": _predict, "prepare": _prepare}
    usage = "train CONFIG | evaluate --weights FILE --data.root DIR | predict IMAGE ... | "
    usage += "prepare PICTURES --labels FILE -o DIR"
    run_one_of("classify", commands, usage, arguments)


def _train(arguments: list[str]) -> None:
    plain = Classification(
        model=Classifier(), data=ImageFolder(root=Path("data/imagenet")), schedule=Schedule(steps=187_671)
    )
    path, config, rest = config_file("classify train", arguments, plain, "configs/imagenet/large_dli14.py")
    defaults = {"config": config, "run": Path("runs") / path.stem}
    options = parse(Train, f"segmv3 classify train {path}", rest, defaults)
    from segmv3.training.loop import train

    train(options.config, options.run, config_file=find_config(path), **given(options, "device", "threads", "extend"))


def _evaluate(arguments: list[str]) -> None:
    program, defaults = "segmv3 classify evaluate", None
    if arguments and not arguments[0].startswith("-"):
        program += f" {arguments[0]}"
        defaults = {"data": load_config(Path(arguments[0]), kind=Classification).data}
        arguments = arguments[1:]
    options = parse(Evaluate, program, arguments, defaults)
    if options.output:
        refuse_existing(options.output, options.overwrite)
    refuse_limit(options.limit)
    from segmv3.checkpoint import check_folders
    from segmv3.data.class_folders import open_pictures
    from segmv3.files import make_folder, write_json
    from segmv3.imagenet.scoring import accuracies, count_hits, differing_view
    from segmv3.report.tables import classification_summary
    from segmv3.runtime.classifying import load_classifier
    from segmv3.screen import Screen

    model = load_classifier(
        options.weights,
        precision=options.precision or "auto",
        **given(options, "backend", "threads", "device", "trust"),
    )
    card, pictures = model.card, open_pictures(options.data.root, options.split)
    check_folders(card, pictures.classes, options.weights)
    if other := differing_view(card, options.data):
        warnings.warn(Segmv3Warning(f"{options.weights} was scored in training with {other}"), stacklevel=1)
    if options.output:
        make_folder(options.output.parent)
    console, indices = Screen(), spread(len(pictures), options.limit)
    with console.bars() as tell:
        told = partial(tell, f"evaluate {options.split}")
        hits = count_hits(model, pictures, options.data, indices=indices, progress=told)
    result = accuracies(hits, pictures, options.data) | {
        "weights": str(options.weights),
        "weights_sha256": card.sha256,
        "precision": model.precision,
        "backend": model.backend,
        "device": model.device,
        "segmv3": segmv3.__version__,
    }
    if options.output:
        write_json(options.output, result, indent=2)
    console.say(classification_summary(result))
    console.say(f"weights {options.weights}, SHA-256 {card.sha256}")


def _predict(arguments: list[str]) -> None:
    options = parse(Predict, "segmv3 classify predict", arguments)
    if not options.images:
        raise ConfigError("segmv3 classify predict needs an image, such as docs/pictures/street.png")
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    from segmv3.images import read_image
    from segmv3.runtime.classifying import load_classifier
    from segmv3.screen import print_line

    classify = load_classifier(options.weights, **given(options, "backend", "threads", "device", "trust"))
    for path in options.images:
        print_line(str(path))
        for name, share in classify(read_image(path), options.top):
            print_line(f"  {share:6.1%}  {name}")


def _prepare(arguments: list[str]) -> None:
    options = parse(Prepare, "segmv3 classify prepare", arguments)
    from segmv3.imagenet.prepare import sort_pictures
    from segmv3.screen import print_line

    count = sort_pictures(options.pictures, options.output, options.labels)
    classes = sum(1 for entry in options.output.iterdir() if entry.is_dir())
    print_line(f"linked {count} pictures into {classes} class folders of {options.output}")

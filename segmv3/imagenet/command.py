"""`segmv3 classify`: the nets as ImageNet classifiers."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import segmv3
from segmv3.commands.help import asked_for_help
from segmv3.commands.options import OnDevice, parse, refuse_existing, refuse_limit
from segmv3.config import Classifier, Precision, Schedule, load_config
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
class Evaluate(OnDevice):
    """Top-1 and top-5 on a split of a folder of pictures."""

    data: ImageFolder
    weights: Path
    """Weight file of a classifier."""
    split: str = "val"
    """Part of the data set to score."""
    limit: int | None = None
    """Score only N images, evenly spaced."""
    output: Path | None = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the file that --output names."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""


@dataclass(frozen=True, kw_only=True)
class Predict(OnDevice):
    """Name what is in pictures, seen as in the net's training."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    weights: Path
    """Weight file of a classifier."""
    top: int = 5
    """Classes to print for each picture."""


def run(arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
    }
    if arguments[:1] and arguments[0] in ("-h", "--help"):
        print("usage: segmv3 classify train CONFIG | evaluate --weights FILE --data.root DIR | predict IMAGE ...")
        return
    if not arguments or arguments[0] not in commands:
        found = f"no classify command {arguments[0]!r}" if arguments else "nothing to do for classify alone"
        raise ConfigError(f"there is {found}; there is segmv3 classify {', '.join(commands)}")
    commands[arguments[0]](arguments[1:])


def _train(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        path, rest = Path(arguments[0]), arguments[1:]
        config = load_config(path, kind=Classification)
    elif word := asked_for_help(arguments):
        path, rest, data = Path("CONFIG"), [word], ImageFolder(root=Path("data/imagenet"))
        config = Classification(model=Classifier(), data=data, schedule=Schedule(steps=187_671))
    else:
        raise ConfigError("segmv3 classify train needs a config file first, such as configs/imagenet/large_dli14.py")
    defaults = {"config": config, "run": Path("runs") / path.stem}
    options = parse(Train, f"segmv3 classify train {path}", rest, defaults)
    from segmv3.training.loop import train

    train(options.config, options.run, device=options.device, threads=options.threads, extend=options.extend)


def _evaluate(arguments: list[str]) -> None:
    program, defaults = "segmv3 classify evaluate", None
    if arguments and not arguments[0].startswith("-"):
        program += f" {arguments[0]}"
        defaults = {"data": load_config(Path(arguments[0]), kind=Classification).data}
        arguments = arguments[1:]
    options = parse(Evaluate, program, arguments, defaults)
    output = options.output
    if output:
        refuse_existing(output, options.overwrite)
    refuse_limit(options.limit)
    from segmv3.files import make_folder, write_bytes
    from segmv3.imagenet.pictures import open_pictures
    from segmv3.imagenet.scoring import accuracies, check_classes, count_hits, differing_view
    from segmv3.report.tables import classification_summary
    from segmv3.runtime import use_device
    from segmv3.screen import Screen
    from segmv3.weights.opening import open_classifier

    device = use_device(options.device, options.threads)
    model, card = open_classifier(options.weights)
    pictures = open_pictures(options.data, options.split)
    check_classes(card, pictures.classes, options.weights)
    if other := differing_view(card, options.data):
        warnings.warn(Segmv3Warning(f"{options.weights} was scored in training with {other}"), stacklevel=1)
    if output:
        make_folder(output.parent)
    count = min(options.limit or len(pictures), len(pictures))
    console = Screen()
    with console.progress() as progress:
        bar = progress.add_task(f"evaluate {options.split}", total=count)
        hits = count_hits(
            model.to(device),
            pictures,
            options.data,
            device=device,
            precision=options.precision,
            indices=[i * len(pictures) // count for i in range(count)],  # of all classes, not of the first
            progress=lambda done, _: progress.update(bar, completed=done),
        )
    result = accuracies(hits, pictures, options.data) | {
        "weights": str(options.weights),
        "weights_sha256": card.sha256,
        "precision": options.precision,
        "device": device.type,
        "segmv3": segmv3.__version__,
    }
    if output:
        write_bytes(output, json.dumps(result, indent=2).encode())
    console.say(classification_summary(result))
    console.say(f"weights {options.weights}, SHA-256 {card.sha256}")


def _predict(arguments: list[str]) -> None:
    options = parse(Predict, "segmv3 classify predict", arguments)
    if not options.images:
        raise ConfigError("segmv3 classify predict needs an image, such as docs/pictures/street.png")
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    from segmv3.imagenet.scoring import as_trained, probabilities
    from segmv3.images import read_image
    from segmv3.runtime import use_device
    from segmv3.screen import print_line
    from segmv3.weights.opening import open_classifier

    device = use_device(options.device, options.threads)
    model, card = open_classifier(options.weights)
    model.to(device)
    data = as_trained(card, ImageFolder(root=Path()))
    for path in options.images:
        best = probabilities(model, read_image(path), data, device=device).topk(min(options.top, model.num_classes))
        print_line(str(path))
        for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print_line(f"  {share:6.1%}  {card.names[index]}")

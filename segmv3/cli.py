"""The `segmv3` command: parse, call, print.

Every command is a dataclass that tyro turns into flags. Whatever imports torch is imported inside a command, so
that `segmv3 --help` answers at once.
"""

import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import tyro

import segmv3
from segmv3.config import (
    Classification,
    Classifier,
    Config,
    Data,
    Device,
    ImageFolder,
    Model,
    Precision,
    Schedule,
    load_config,
)
from segmv3.errors import ConfigError, DataError, Interrupted, OutputError, Segmv3Error, Segmv3Warning

_USAGE = """\
usage: segmv3 COMMAND ...

  train CONFIG [--run DIR] [--optim.lr 0.02 ...]     train a net, or go on where the run stopped
  evaluate CONFIG --weights FILE                     score weights on a split
  predict SOURCE --weights FILE --output DIR         label an image, a list, a folder, a glob or a video
  classify train CONFIG [--run DIR]                  train a backbone on ImageNet, or any folder of pictures
  classify evaluate --weights FILE --data.root DIR   top-1 and top-5
  classify predict IMAGE ... --weights FILE          what is in a picture
  weights import FILE_OR_NAME [-o FILE]              load another project's weights, or published ones
  weights list                                       the published weights that can be used by name
  models [--all]                                     the named nets, or the whole family: size, cost, accuracy
  data mini-city DIR                                 draw a small street data set in Cityscapes layout

segmv3 COMMAND --help lists the flags of a command, segmv3 --version prints the version.
Exit codes: 0 done, 2 data or usage, 3 partial output, 4 environment or numerics, 130 and 143 interrupted.
"""

Settings = Annotated[Config, tyro.conf.arg(name="")]
"""A config whose fields are flags without a prefix: --optim.lr, not --config.optim.lr."""

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a net, or go on with a run where it stopped."""

    config: Settings
    run: Path
    """Folder of the run."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score weights on a split, at the size of its ground truth."""

    model: Model
    data: Data
    weights: Path
    """Weight file written by a run."""
    multi_scale_flip: bool = False
    """Average six scales and their mirror images, as in the mmsegmentation table."""
    split: str = "val"
    """Part of the data set to score."""
    limit: int | None = None
    """Score only the first N images."""
    output: Path | None = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the file that --output names."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Label an image, a list of images (.txt), a folder, a glob or a video."""

    source: tyro.conf.Positional[str]
    """What to label."""
    weights: Path
    """Weight file written by a run."""
    output: Path
    """Folder for the results."""
    save: str = "overlay"
    """Comma-separated kinds: overlay (colours over the image, with a legend), color (colours alone), labels
    (grey PNG of train ids)."""
    overwrite: bool = False
    """Replace results of an earlier run."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class ClassifyTrain:
    """Train a backbone to classify pictures, or go on with a run where it stopped."""

    config: Annotated[Classification, tyro.conf.arg(name="")]
    run: Path
    """Folder of the run."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class ClassifyEvaluate:
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
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class ClassifyPredict:
    """Name what is in pictures, seen as in the net's training."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    weights: Path
    """Weight file of a classifier."""
    top: int = 5
    """Classes to print for each picture."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the named nets."""

    all: bool = False
    """List every net of the references, with the accuracy that its authors published."""


@dataclass(frozen=True, kw_only=True)
class MiniCity:
    """Draw synthetic street scenes in Cityscapes layout, to train and test without Cityscapes."""

    root: tyro.conf.Positional[Path]
    """Folder to create."""
    train: int = 48
    """Training images."""
    val: int = 12
    """Validation images."""
    size: tuple[int, int] = (256, 512)
    """Image height and width."""
    seed: int = 0
    """Same seed, same pixels."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what goes wrong is one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_sigterm)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"segmv3 {segmv3.__version__}")
        return 0
    try:
        _run(arguments)
    except Segmv3Error as error:
        return _fail(_last_message(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (MemoryError, RuntimeError) as error:  # torch has an error of its own for every allocator
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        return _fail("environment: out of memory; use smaller images, crops or batches", 4)
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "classify": _classify,
        "models": _models,
        "weights": _weights,
        "data": _data,
    }
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        raise ConfigError(f"there is no command {name!r}; segmv3 has {', '.join(commands)}")
    commands[name](rest)


def _train(arguments: list[str]) -> None:
    path, config, rest = _config_file("train", arguments)
    options = _parse(Train, f"segmv3 train {path}", rest, {"config": config, "run": Path("runs") / path.stem})
    from segmv3.training.loop import train

    train(options.config, options.run, device=options.device, threads=options.threads)


def _evaluate(arguments: list[str]) -> None:
    path, config, rest = _config_file("evaluate", arguments)
    options = _parse(
        Evaluate,
        f"segmv3 evaluate {path}",
        rest,
        {"model": config.model, "data": config.data},
    )
    output = options.output
    if output and output.exists() and (output.is_dir() or not options.overwrite):
        hint = "name a file in it" if output.is_dir() else "choose another --output or add --overwrite"
        raise OutputError(f"{output} {'is a folder' if output.is_dir() else 'exists'}; {hint}")
    from rich.console import Console
    from rich.progress import Progress

    from segmv3 import checkpoint
    from segmv3.data.datasets import open_dataset
    from segmv3.evaluation import evaluate, multi_scale, scores, single_scale
    from segmv3.files import make_folder, write_bytes
    from segmv3.report.tables import scores_table, summary
    from segmv3.runtime import use_device
    from segmv3.weights.opening import open_segmenter

    device = use_device(options.device, options.threads)
    dataset = open_dataset(options.data, options.split)
    model, card = open_segmenter(options.weights)
    checkpoint.check_net(card, model, options.model, dataset.classes, options.weights)
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; it must be at least 1")
    if output:
        make_folder(output.parent)
    count = min(options.limit or len(dataset), len(dataset))
    mode = multi_scale if options.multi_scale_flip else single_scale
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"evaluate {options.split}", total=count)
        confusion = evaluate(
            mode(model.to(device)),
            dataset,
            device=device,
            precision=options.precision,
            indices=range(count),
            progress=lambda done, _: progress.update(bar, completed=done),
        )
    if not confusion.matrix.any():
        raise DataError(f"no pixel of '{options.split}' is labelled: there is nothing to score")
    result = scores(confusion, dataset, images=count, multi_scale_flip=options.multi_scale_flip)
    result |= {
        "config": str(path),
        "weights": str(options.weights),
        "weights_sha256": card.sha256,
        "precision": options.precision,
        "device": device.type,
        "segmv3": segmv3.__version__,
    }
    console.print(scores_table(result))
    console.print(summary(result), highlight=False, soft_wrap=True)
    console.print(f"weights {options.weights}, SHA-256 {card.sha256}", highlight=False, soft_wrap=True)
    if output:
        write_bytes(output, json.dumps(result, indent=2).encode())


def _predict(arguments: list[str]) -> None:
    options = _parse(Predict, "segmv3 predict", arguments)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from segmv3.prediction import predict_source
    from segmv3.runtime import load

    predict = load(options.weights, threads=options.threads, device=options.device, precision=options.precision)
    console = Console()
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predict", total=None)
        written = predict_source(
            options.source,
            predict,
            predict.classes,
            options.output,
            save=tuple(kind.strip() for kind in options.save.split(",")),
            overwrite=options.overwrite,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    files = "1 file" if len(written) == 1 else f"{len(written):,} files"
    console.print(f"wrote {files} to {options.output}", highlight=False, soft_wrap=True)


def _classify(arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _classify_train,
        "evaluate": _classify_evaluate,
        "predict": _classify_predict,
    }
    if arguments[:1] and arguments[0] in ("-h", "--help"):
        print("".join(line + "\n" for line in _USAGE.splitlines() if line.startswith(("usage", "  classify"))), end="")
        return
    if not arguments or arguments[0] not in commands:
        found = f"no classify command {arguments[0]!r}" if arguments else "nothing to do for classify alone"
        raise ConfigError(f"there is {found}; there is segmv3 classify {', '.join(commands)}")
    commands[arguments[0]](arguments[1:])


def _classify_train(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        path, rest = Path(arguments[0]), arguments[1:]
        config = load_config(path, kind=Classification)
    elif "--help" in arguments or "-h" in arguments:
        path, rest, data = Path("CONFIG"), ["--help"], ImageFolder(root=Path("data/imagenet"))
        config = Classification(model=Classifier(), data=data, schedule=Schedule(steps=187_671))
    else:
        raise ConfigError("segmv3 classify train needs a config file first, such as configs/imagenet/large_dli14.py")
    defaults = {"config": config, "run": Path("runs") / path.stem}
    options = _parse(ClassifyTrain, f"segmv3 classify train {path}", rest, defaults)
    from segmv3.training.loop import train

    train(options.config, options.run, device=options.device, threads=options.threads)


def _classify_evaluate(arguments: list[str]) -> None:
    program, defaults = "segmv3 classify evaluate", None
    if arguments and not arguments[0].startswith("-"):
        program += f" {arguments[0]}"
        defaults = {"data": load_config(Path(arguments[0]), kind=Classification).data}
        arguments = arguments[1:]
    options = _parse(ClassifyEvaluate, program, arguments, defaults)
    output = options.output
    if output and output.exists() and (output.is_dir() or not options.overwrite):
        hint = "name a file in it" if output.is_dir() else "choose another --output or add --overwrite"
        raise OutputError(f"{output} {'is a folder' if output.is_dir() else 'exists'}; {hint}")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; it must be at least 1")
    from rich.console import Console
    from rich.progress import Progress

    from segmv3 import checkpoint
    from segmv3.classification import accuracies, check_classes, count_hits, differing_view
    from segmv3.data.imagefolder import open_pictures
    from segmv3.files import make_folder, write_bytes
    from segmv3.report.tables import classification_summary
    from segmv3.runtime import use_device

    device = use_device(options.device, options.threads)
    model, card = checkpoint.load_classifier(options.weights)
    pictures = open_pictures(options.data, options.split)
    check_classes(card, pictures.classes, options.weights)
    if other := differing_view(card, options.data):
        warnings.warn(Segmv3Warning(f"{options.weights} was scored in training with {other}"), stacklevel=1)
    if output:
        make_folder(output.parent)
    count = min(options.limit or len(pictures), len(pictures))
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
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
    console.print(classification_summary(result), highlight=False, soft_wrap=True)
    console.print(f"weights {options.weights}, SHA-256 {card.sha256}", highlight=False, soft_wrap=True)
    if output:
        write_bytes(output, json.dumps(result, indent=2).encode())


def _classify_predict(arguments: list[str]) -> None:
    options = _parse(ClassifyPredict, "segmv3 classify predict", arguments)
    if not options.images:
        raise ConfigError("segmv3 classify predict needs an image, such as docs/pictures/street.png")
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    from segmv3 import checkpoint
    from segmv3.classification import as_trained, probabilities
    from segmv3.images import read_image
    from segmv3.runtime import use_device

    device = use_device(options.device, options.threads)
    model, card = checkpoint.load_classifier(options.weights)
    model.to(device)
    data = as_trained(card, ImageFolder(root=Path()))
    for path in options.images:
        best = probabilities(model, read_image(path), data, device=device).topk(min(options.top, model.num_classes))
        print(path)
        for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {share:6.1%}  {card.names[index]}")


def _models(arguments: list[str]) -> None:
    options = _parse(Models, "segmv3 models", arguments)
    from rich.console import Console

    from segmv3.models.count import describe_nets
    from segmv3.models.family import count_family
    from segmv3.report.tables import family_table, models_table

    Console().print(family_table(count_family()) if options.all else models_table(describe_nets()))


def _weights(arguments: list[str]) -> None:
    from segmv3.commands import weights

    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == "list":
        weights.list_weights(_parse(weights.List, "segmv3 weights list", rest))
    elif name == "import":
        weights.import_file(_parse(weights.Import, "segmv3 weights import", rest))
    else:
        raise ConfigError(f"there is no weights command {name!r}; there are segmv3 weights list and import")


def _data(arguments: list[str]) -> None:
    if arguments[:1] and arguments[0] in ("-h", "--help"):
        arguments = ["mini-city", "--help"]  # the only one so far
    if arguments[:1] != ["mini-city"]:
        raise ConfigError(f"there is no data command {' '.join(arguments[:1])!r}; there is segmv3 data mini-city DIR")
    options = _parse(MiniCity, "segmv3 data mini-city", arguments[1:])
    from rich.console import Console
    from rich.progress import Progress

    from segmv3.data.mini_city import write_mini_city

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("mini-city", total=options.train + options.val)
        write_mini_city(
            options.root,
            train=options.train,
            val=options.val,
            size=options.size,
            seed=options.seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(
        f"{options.root}: {options.train} train and {options.val} val scenes of "
        f"{options.size[0]}x{options.size[1]}, seed {options.seed}",
        highlight=False,
        soft_wrap=True,
    )


def _config_file(command: str, arguments: list[str]) -> tuple[Path, Config, list[str]]:
    """The config file of a command and the flags after it; plain defaults when only help is asked for."""
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments[0])
        return path, load_config(path), arguments[1:]
    if "--help" in arguments or "-h" in arguments:
        data = Data(dataset="cityscapes", root=Path("data/cityscapes"))
        return Path("CONFIG"), Config(model=Model(), data=data, schedule=Schedule(steps=320_000)), ["--help"]
    raise ConfigError(f"segmv3 {command} needs a config file first, such as configs/lraspp_small_d8.py")


def _parse(
    options: type[Options], program: str, arguments: list[str], defaults: dict[str, Any] | None = None
) -> Options:
    """Flags into a dataclass; tyro ends the program with a hint and exit code 2 where they do not fit."""
    filled: dict[str, Any] = {}
    if defaults:
        required = {f.name: tyro.MISSING for f in fields(options) if f.default is MISSING}  # type: ignore[arg-type]
        filled = {"default": options(**required | defaults)}
    return tyro.cli(options, prog=program, args=arguments, config=(tyro.conf.AvoidSubcommands,), **filled)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C: what is open is closed on the way out. Training has a handler of its own."""
    raise Interrupted("what was finished is kept", number)


def _last_message(error: Segmv3Error) -> str:
    """The one line of an error; torch wraps a worker's error in that worker's traceback."""
    return str(error).strip().rpartition("Error: ")[2] if "Traceback" in str(error) else str(error)


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Our own warnings are for the user, one line; other packages' are not."""
    if issubclass(category, Segmv3Warning):
        print(message, file=sys.stderr)

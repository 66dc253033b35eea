"""`segmv3 data`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import tyro

from segmv3.commands.label_loop import run_next, run_suspects
from segmv3.commands.options import Output, given, parse, refuse_existing, run_one_of
from segmv3.config import Data, Layout, load_config
from segmv3.data.importing.settings import ImportSettings
from segmv3.errors import DataError, OutputError


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
    video: bool = False
    """Draw a drive along one street instead: drive.webm, and its labelled frames as the split val."""
    frames: int = 150
    """Frames of that drive, 15 a second."""


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """The data set of a command, where no config file names it."""

    source: tyro.conf.Positional[Path]
    """Folder of a data set, or a config file (.py)."""
    dataset: Layout | None = None
    """Layout on disk; by default what the folder looks like. See data/README.md."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Decode every file of a data set and report what it holds and all that is wrong with it.

    Exit code 0: it can be used, perhaps with warnings; 2: it cannot. Files are only read, and remembered: the
    next check of the same files, or the start of a training, reads none of them again.
    """

    split: tuple[str, ...] = ()
    """Parts of the data set; by default train and val, and test where there is one."""
    output: Output = None
    """Folder for check.json and check.html, a page with pictures."""
    overwrite: bool = False
    """Replace an earlier check there."""


@dataclass(frozen=True, kw_only=True)
class CheckFolder(Check, _Folder):
    __doc__ = Check.__doc__


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Check):
    __doc__ = Check.__doc__

    data: Data


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Decode a data set once, into files from which training reads its crops directly (--data.cache OUTPUT).

    The same command goes on where it was stopped, and compares the checksums of what is finished.
    """

    output: tyro.conf.Positional[Path]
    """Folder of the cache: 8.4 MB for each image of 1024x2048, a quarter of that with --half."""
    split: tuple[str, ...] = ("train",)
    """Parts of the data set."""
    half: bool = False
    """Store half the height and width: quicker training at half the resolution."""
    overwrite: bool = False
    """Replace a cache of another version there."""


@dataclass(frozen=True, kw_only=True)
class PackFolder(Pack, _Folder):
    __doc__ = Pack.__doc__


@dataclass(frozen=True, kw_only=True)
class PackConfig(Pack):
    __doc__ = Pack.__doc__

    data: Data


@dataclass(frozen=True, kw_only=True)
class Import(ImportSettings):
    """Make a data set that segmv3 trains on of images and labels as other tools store them.

    SOURCE is only read: images become links into it, and labels are written anew only where they must be. Whole drives
    go to train or to val, never neighbouring frames of one clip to both.
    """

    source: tyro.conf.Positional[Path]
    """Folder of images and labels, or a file of annotations."""
    output: tyro.conf.Positional[Path]
    """Folder to create."""


InFolder = TypeVar("InFolder", CheckFolder, PackFolder)
InConfig = TypeVar("InConfig", CheckConfig, PackConfig)


def run(arguments: list[str]) -> None:
    commands = {
        "mini-city": _mini_city,
        "import": _import,
        "check": _check,
        "pack": _pack,
        "next": run_next,
        "suspects": run_suspects,
    }
    usage = "mini-city DIR | import SOURCE OUTPUT | check CONFIG_OR_DIR | pack CONFIG_OR_DIR OUTPUT"
    usage += " | next POOL | suspects CONFIG_OR_DIR"
    run_one_of("data", commands, usage, arguments)


def _import(arguments: list[str]) -> None:
    options = parse(Import, "segmv3 data import", arguments)
    from rich import box
    from rich.table import Table

    from segmv3.data.importing.run import import_data
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as tell:
        made = import_data(options.source, options.output, options, tell=tell)
    for line in made.said:
        console.say(line)
    table = Table(box=box.SIMPLE)
    for title in ("in the source", "name", "class", "id", "frames", "share"):
        table.add_column(title, overflow="fold", justify="left" if title in ("name", "class") else "right")
    for each in made.classes:
        now = (each.to or "ignored", str(each.id), f"{each.frames:,}", f"{each.share:.2%}")
        table.add_row(each.source, each.name, *now)
    console.print(table)
    for line in made.left_out:
        console.say(f"left out: {line}")
    splits = ", ".join(f"{split} {number:,}" for split, number in made.splits.items())
    console.say(f"wrote {options.output}: {splits}. Next: segmv3 data check {options.output}")


def _mini_city(arguments: list[str]) -> None:
    options = parse(MiniCity, "segmv3 data mini-city", arguments)
    from segmv3.mini_city import write_mini_city
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as tell:
        write_mini_city(
            options.root,
            video=options.frames if options.video else None,
            progress=partial(tell, "mini-city"),
            **given(options, "train", "val", "size", "seed"),
        )
    drawn = f"{options.train} train and {options.val} val scenes"
    if options.video:
        drawn = f"drive.webm and its {options.frames} labelled frames (split val)"
    console.say(f"{options.root}: {drawn} of {options.size[0]}x{options.size[1]}, seed {options.seed}")


def _check(arguments: list[str]) -> None:
    options, data = _parsed("check", CheckFolder, CheckConfig, arguments)
    if options.output:
        _refuse_output(options.output, data.root, options.overwrite)
    from segmv3.data.sources import source_of
    from segmv3.doctor import examine, write_examination
    from segmv3.report.doctor import classes_table, findings_lines, splits_table, verdict
    from segmv3.screen import Screen

    splits = tuple(dict.fromkeys(options.split)) or source_of(data).splits(data.root)
    console = Screen()
    with console.bars() as tell:
        examination = examine(data, splits, lambda split, done, total: tell(f"check {split}", done, total))
    result = examination.result
    page = write_examination(examination, options.output) if options.output else None
    named = result["dataset"] != data.root.resolve().name
    console.say(f"{result['dataset']} in {result['root']}" if named else str(data.root))
    console.print(splits_table(result))
    console.print(classes_table(result))
    if result["findings"]:
        for line in findings_lines(result):
            console.say(line)
        console.print()
    if page:
        console.say(f"wrote {page}")
    if not result["usable"]:
        raise DataError(verdict(result))
    console.say(verdict(result))


def _parsed(
    name: str, of_folder: type[InFolder], of_config: type[InConfig], arguments: list[str]
) -> tuple[InFolder | InConfig, Data]:
    """The options of a command, and the data set of its first argument: a config file, or a folder."""
    program = f"segmv3 data {name}"
    if arguments and arguments[0].endswith(".py"):
        config = load_config(Path(arguments[0]))
        chosen = parse(of_config, f"{program} {arguments[0]}", arguments[1:], {"data": config.data})
        return chosen, chosen.data
    options = parse(of_folder, program, arguments)
    from segmv3.data.sources import data_in

    return options, data_in(options.source, options.dataset)


def _pack(arguments: list[str]) -> None:
    options, data = _parsed("pack", PackFolder, PackConfig, arguments)
    from segmv3.data.datasets import open_dataset
    from segmv3.data.pack import pack
    from segmv3.data.packed import version
    from segmv3.screen import Screen

    datasets = [open_dataset(data, split) for split in dict.fromkeys(options.split)]
    console = Screen()
    with console.bars() as tell:
        for dataset in datasets:
            packed = pack(
                dataset,
                options.output,
                half=options.half,
                overwrite=options.overwrite,
                progress=partial(tell, f"pack {dataset.split}"),
                say=console.say,
            )
            digest = version(packed.images, packed.classes.names, packed.half)
            console.say(
                f"{options.output}: {len(packed):,} images of {dataset.title} {dataset.split}, "
                f"{packed.images[-1].end / 1e6:,.1f} MB, all checksums agree, version {digest[:12]}"
            )


def _refuse_output(folder: Path, root: Path, overwrite: bool) -> None:
    """Raises: OutputError when the results would lie among the data, or replace others."""
    if folder.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{folder} lies in the data set; choose another --output")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    for name in ("check.json", "check.html"):
        refuse_existing(folder / name, overwrite)

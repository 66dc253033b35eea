"""What the commands that measure share: their flags, the machine they run on, the receipt they leave."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmv3.commands.options import OnDevice, refuse_existing
from segmv3.errors import ConfigError
from segmv3.files import make_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from segmv3.benchmark.nets import Place
    from segmv3.benchmark.receipt import Conditions

_WIDTH = 190
"""Columns that a table needs; a narrower terminal folds its lines, which is better than cutting numbers."""


@dataclass(frozen=True, kw_only=True)
class Root:
    root: Path | None = None
    """The folder that holds the data set."""


@dataclass(frozen=True, kw_only=True)
class Measurement(OnDevice):
    """A command that times something."""

    repeat: int = 20
    """Timed calls of each."""
    force: bool = False
    """Measure although other programs use the CPU."""
    output: Path | None = None
    """Write all that was measured, and on what, to this JSON file."""
    overwrite: bool = False
    """Replace the files that --output names."""


@dataclass(frozen=True)
class Session:
    """A measurement that is going on."""

    kind: str
    options: Measurement
    console: Console
    place: Place
    conditions: Conditions

    @contextmanager
    def progress(self) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
        """A line with a bar: a function that says what is being done, and one for how much of it is."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        bar = Progress(
            *columns, TimeElapsedColumn(), console=self.console, transient=True, disable=not self.console.is_terminal
        )
        with bar:
            task = bar.add_task("", total=None)
            yield (
                lambda text: bar.update(task, description=text, total=None, completed=0),
                lambda done, total: bar.update(task, completed=done, total=total),
            )

    def say(self, line: str) -> None:
        say(self.console, line)

    def show(self, title: str, table: Table, note: str = "") -> None:
        """A table between its title and a note; rich would wrap both at the width of the table."""
        self.say(f"\n{title}")
        from rich.console import Console

        # a console of its own: one that is narrower would cut columns, whatever width it is asked for
        Console(file=self.console.file, width=max(self.console.width, _WIDTH)).print(table, crop=False)
        if note:
            self.say(note)

    def finish(self, **results: Any) -> None:
        """Say how quiet the machine stayed, and write the receipt if one is asked for."""
        from segmv3.benchmark.receipt import receipt, write_receipt
        from segmv3.benchmark.timing import core_count, is_busy

        used = self.conditions.others.cores()
        if is_busy(used):
            self.say(
                f"other programs used {used:.1f} of {core_count()} CPU cores meanwhile: every number is worse than it "
                "need be; ratios suffer less"
            )
        if self.options.output:
            write_receipt(self.options.output, receipt(self.kind, self.conditions, _settings(self.options), **results))
            self.say(f"wrote {self.options.output}")


@contextmanager
def measuring(kind: str, options: Measurement, arguments: Sequence[str]) -> Iterator[Session]:
    """Get ready to measure.

    Raises: ConfigError for a count below 1; OutputError when a file would be replaced; ModelError or ResourceError
        for threads or a device that cannot be had; BusyError when other programs use the CPU.
    """
    refuse_repeat(options.repeat)
    if options.output:
        if options.output.suffix != ".json":
            raise ConfigError(f"--output is {options.output}; a receipt is a file *.json")
        refuse_existing(options.output, options.overwrite)
        make_folder(options.output.parent)  # now, not after the measurement
    from rich.console import Console

    from segmv3.benchmark.timing import refuse_busy

    used = refuse_busy(force=options.force)
    import torch

    from segmv3.benchmark.nets import Place
    from segmv3.benchmark.receipt import Conditions
    from segmv3.runtime import use_device

    device = use_device(options.device, options.threads)
    with tempfile.TemporaryDirectory(prefix="segmv3-benchmark-") as folder:
        place = Place("cuda" if device.type == "cuda" else "cpu", torch.get_num_threads(), Path(folder))
        conditions = Conditions(shlex.join(["segmv3", "benchmark", kind, *arguments]), used)
        session = Session(kind, options, Console(), place, conditions)
        session.say(_machine(place))
        yield session


def _machine(place: Place) -> str:
    from segmv3.runtime.machine import machine

    facts = machine()
    shown = ("torch", "openvino", "onnxruntime")
    packages = ", ".join(f"{name} {facts['packages'][name]}" for name in shown if name in facts["packages"])
    commit = f", commit {facts['commit']}" if facts["commit"] else ""
    where = f"GPU {facts['gpu']}" if place.device == "cuda" else "CPU"
    return (
        f"device {where} ({facts['cpu']}: {' '.join(facts['flags']) or 'no vector flags known'}), {place.threads} "
        f"threads, segmv3 {facts['segmv3']}{commit}, {packages}"
    )


def _settings(options: Measurement) -> dict[str, Any]:
    """Flags as JSON types."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    return {key: value for key, value in plain.items() if key not in ("force", "overwrite", "output")}


def refuse_repeat(repeat: int, flag: str = "repeat") -> None:
    """Raises: ConfigError for a count that leaves nothing."""
    if repeat < 1:
        raise ConfigError(f"--{flag} is {repeat}; it must be at least 1")


def refuse_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """Raises: ConfigError for none, one without pixels, or the same twice."""
    if not sizes:
        raise ConfigError("--size needs a height and a width")
    for height, width in sizes:
        if height < 1 or width < 1:
            raise ConfigError(f"--size is {height} {width}; height and width must be at least 1")
    if len(set(sizes)) < len(sizes):
        raise ConfigError("--size names a size twice")


def columns(*titles: str, text: Sequence[str] = ()) -> Table:
    """An empty table of numbers.

    Args: text: titles of the columns that are not numbers.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for name in titles:
        table.add_column(name, justify="left" if name in text else "right", no_wrap=True)
    return table


def milliseconds(seconds: float) -> str:
    """With three digits that count: 0.85, 12.3, 1,234."""
    value = 1000 * seconds
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def say(console: Console, line: str) -> None:
    """One line, as it is."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)

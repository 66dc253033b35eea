"""What the commands that measure share: their flags, the machine they run on, the receipt they leave."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmv3.commands.options import OnDevice, Trusting, refuse_existing
from segmv3.errors import ConfigError
from segmv3.files import make_folder

if TYPE_CHECKING:
    from rich.table import Table

    from segmv3.benchmark.nets import Place
    from segmv3.benchmark.receipt import Conditions
    from segmv3.benchmark.timing import Progress
    from segmv3.screen import Screen

WIDTH = 100
"""Columns that every table fits; a narrower terminal folds its lines, which is better than cutting numbers."""


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
    """A measurement that is going on.

    Attributes: kept: what is finished, by its key in the receipt. calls: those timed since, should the measurement be
        stopped: what was being done, what was called, the seconds (of each stage) it took.
    """

    kind: str
    options: Measurement
    console: Screen
    place: Place
    conditions: Conditions
    kept: dict[str, list[Any]] = field(default_factory=dict)
    calls: list[tuple[str, Any, Any]] = field(default_factory=list)

    @contextmanager
    def progress(self) -> Iterator[tuple[Callable[[str], None], Progress]]:
        """A line with a bar: a function that says what is being done, and one for how much of it is."""
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

        from segmv3.screen import Words

        with self.console.progress(Words(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("", total=None)
            doing = ""

            def tell(text: str) -> None:
                nonlocal doing
                doing = text
                bar.update(task, description=text, total=None, completed=0)

            def advance(done: int, total: int, what: Any, measured: Any) -> None:
                self.calls.append((doing, what, measured))
                bar.update(task, completed=done, total=total)

            yield tell, advance

    def say(self, line: str) -> None:
        self.console.say(line)

    def show(self, title: str, table: Table, note: str = "") -> None:
        """A table between its title and a note."""
        show(self.console, title, table, note)

    def keep(self, **results: Sequence[Any]) -> None:
        """Finished entries of the receipt, each list to be appended to what is there already."""
        for key, found in results.items():
            self.kept.setdefault(key, []).extend(found)
        self.calls.clear()

    def finish(self) -> None:
        """Say how quiet the machine stayed, and write the receipt if one is asked for."""
        from segmv3.benchmark.timing import core_count, is_busy

        used = self.conditions.others.cores()
        if is_busy(used):
            self.say(
                f"other programs used {used:.1f} of {core_count()} CPU cores meanwhile: every number is worse than it "
                "need be; ratios suffer less"
            )
        if self.options.output:
            self._write(self.options.output, self.kept)
            self.say(f"wrote {self.options.output}")

    def stop(self) -> None:
        """After an error or Ctrl-C: write what was measured so far, marked as incomplete."""
        if not (self.kept or self.calls):
            return
        if not self.options.output:
            self.say("stopped; with --output FILE.json what was timed so far would be kept")
            return
        calls = [
            {"during": doing, "of": asdict(what) if is_dataclass(what) else what, "ms": _in_milliseconds(measured)}  # type: ignore[arg-type]
            for doing, what, measured in self.calls
        ]
        self._write(self.options.output, {"incomplete": True, **self.kept, "calls": calls})
        self.say(f"stopped; wrote what was timed so far to {self.options.output}, marked as incomplete")

    def _write(self, path: Path, results: Mapping[str, Any]) -> None:
        from segmv3.benchmark.receipt import receipt, write_receipt

        flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self.options).items()}
        asked = {name: value for name, value in flags.items() if name not in ("force", "overwrite", "output")}
        write_receipt(path, receipt(self.kind, self.conditions, asked, **results))


def _in_milliseconds(seconds: Any) -> Any:
    """Of a call, or of each stage of one."""
    if isinstance(seconds, Mapping):
        return {stage: _in_milliseconds(value) for stage, value in seconds.items()}
    return round(1000 * seconds, 3)


@contextmanager
def measuring(kind: str, options: Measurement, arguments: Sequence[str]) -> Iterator[Session]:
    """Get ready to measure; what stops the measurement leaves a receipt of what was measured until then.

    Raises: ConfigError for a count below 1; OutputError when a file would be replaced; ModelError or ResourceError
        for threads or a device that cannot be had; BusyError when other programs use the CPU.
    """
    refuse_repeat(options.repeat)
    if options.output:
        if options.output.suffix != ".json":
            raise ConfigError(f"--output is {options.output}; a receipt is a file *.json")
        refuse_existing(options.output, options.overwrite)
        make_folder(options.output.parent)  # now, not after the measurement
    from segmv3.benchmark.timing import refuse_busy
    from segmv3.screen import Screen

    used = refuse_busy(force=options.force)
    import torch

    from segmv3.benchmark.nets import Place
    from segmv3.benchmark.receipt import Conditions
    from segmv3.runtime import use_device

    device = use_device(options.device, options.threads)
    with tempfile.TemporaryDirectory(prefix="segmv3-benchmark-") as folder:
        trust = isinstance(options, Trusting) and options.trust
        place = Place("cuda" if device.type == "cuda" else "cpu", torch.get_num_threads(), Path(folder), trust)
        conditions = Conditions(shlex.join(["segmv3", "benchmark", kind, *arguments]), used)
        session = Session(kind, options, Screen(), place, conditions)
        session.say(_machine(place))
        try:
            yield session
        except BaseException:
            session.stop()
            raise


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


def refuse_odd(size: tuple[int, int], why: str) -> None:
    """Raises: ConfigError for an odd height or width."""
    if size[0] % 2 or size[1] % 2:
        raise ConfigError(f"--size is {size[0]} {size[1]}; {why}, so both must be even")


def fresh_nets(given: Sequence[str], default: Sequence[str], *, weights: bool) -> tuple[str, ...]:
    """The named nets to time with fresh weights: those given, or the default. None where weight files are timed.

    Raises: ConfigError for both --net and --weights; ModelError for a net that does not exist.
    """
    if weights and given:
        raise ConfigError("--weights and --net exclude each other; a named net has fresh weights")
    from segmv3.models.zoo import net

    for name in given:
        net(name)
    return () if weights else tuple(given or default)


def columns(*titles: str, text: Sequence[str] = ()) -> Table:
    """An empty table of numbers, narrow enough for `show`.

    Args:
        titles: titles of the columns, with line breaks where they are wider than their numbers.
        text: titles of the columns that hold no numbers. These are folded where the table is too wide.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in titles:
        is_text = name in text
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    return table


def show(console: Screen, title: str, table: Table, note: str = "") -> None:
    """A table between its title and a note; rich would wrap both at the width of the table."""
    console.print()
    console.say(title)
    console.print(table)
    for line in note.split("\n") if note else ():
        console.say(line)


def milliseconds(seconds: float) -> str:
    """Format a number with three significant digits: 0.85, 12.3, 1,234."""
    value = 1000 * seconds
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"

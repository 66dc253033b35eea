"""What a person sees of a run: a progress line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from segmv3.screen import Screen, Words

_LINE_SECONDS = 30.0


class RunConsole:
    """Progress of a run, shown while it is open. Silent on every process but the first."""

    def __init__(self, steps: int, *, quiet: bool = False) -> None:
        self.console = Screen(quiet=quiet)
        self.live = self.console.is_terminal
        self.steps = steps
        columns = (Words(style="bold"), BarColumn(bar_width=24), MofNCompleteColumn(), Words("status"))
        self._progress = self.console.progress(*columns, TimeRemainingColumn(), disable=quiet or not self.live)
        self._train = self._progress.add_task("train", total=steps, visible=False, status="")

    def __enter__(self) -> "RunConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, done: int, title: str = "train") -> None:
        """Show the bar of the steps."""
        self._progress.reset(self._train, completed=done, visible=True, description=title)

    def say(self, text: str) -> None:
        self.console.say(text)

    def step(self, done: int) -> None:
        self._progress.update(self._train, completed=done)

    def status(self, text: str) -> None:
        """Show a few words behind the bar."""
        self._progress.update(self._train, status=text)

    def train_line(self, entry: dict[str, Any], seconds_left: float) -> None:
        status = (
            f"loss {entry['loss']:.3f}  lr {entry['lr']:.2e}  {entry['images_per_second']:.1f} img/s  "
            f"data wait {entry['wait']:.0%}"
        )
        if entry.get("skipped"):
            status += f"  {entry['skipped']} skipped (fp16 overflow)"
        if self.live:
            self.status(status)
        else:
            self.say(f"step {entry['step']:,}/{self.steps:,}  {status}  left {duration(seconds_left)}")

    @contextmanager
    def task(self, title: str) -> Iterator[Any]:
        """A bar for work beside the steps, or a line every half minute; yields a `progress(done, total)`."""
        bar = self._progress.add_task(title, total=None, status="")
        next_line = time.monotonic() + _LINE_SECONDS

        def progress(done: int, total: int) -> None:
            nonlocal next_line
            self._progress.update(bar, completed=done, total=total)
            if not self.live and time.monotonic() > next_line:
                self.say(f"{title} {done:,}/{total:,}")
                next_line += _LINE_SECONDS

        try:
            yield progress
        finally:
            self._progress.remove_task(bar)


def duration(seconds: float) -> str:
    """`1h 02m`, `3m 20s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"

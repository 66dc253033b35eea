"""What a person sees on a terminal: tables, bars and lines in which a name is text and never markup."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from segmv3.errors import printable

_WIDE = 10_000  # columns of a pipe or a file


class Screen(Console):
    """A console for which `[sky]`, `:smile:` and escape sequences in a name are letters.

    It goes quiet when whoever read our output has left: `segmv3 evaluate | head` must not end the work.
    """

    latest: "ClassVar[Screen | None]" = None
    """The one that showed the latest bar."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        if not (self.is_terminal or "width" in options or "COLUMNS" in os.environ):
            self.width = _WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """Also for the cells, headers and captions of tables; a line break is one."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def say(self, line: str) -> None:
        """Print one line, however long it is."""
        self.print(printable(line), soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints, but no word and no number of a table is cut, however narrow the terminal is."""
        for table in objects:
            for column in table.columns if isinstance(table, Table) else ():
                cells = "\n".join(map(str, (column.header, *column.cells)))
                word, line = (max(map(cell_len, cells.split(end)), default=1) for end in (None, "\n"))
                column.no_wrap |= word == line  # what can be broken is made narrower, and nothing else
                column.min_width, options["crop"] = line if column.no_wrap else word, False
        super().print(*objects, **options)

    def progress(self, *columns: ProgressColumn, **options: Any) -> Progress:
        """A bar on a terminal, gone when it is done.

        Args:
            columns: what to show; by default a title, the bar, the count and the time left.
        """
        Screen.latest = self
        shown = columns or (Words(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*shown, console=self, transient=True, **{"disable": not self.is_terminal} | options)

    @contextmanager
    def bars(self, title: str = "") -> Iterator[Callable[[str, int, int | None], None]]:
        """A bar for each thing that is being done.

        Args:
            title: of a single bar for all of them.

        Yields:
            A function of what is being done, how much of it is done, and how much there is (None or 0: not known).
        """
        with self.progress() as progress:
            tasks: dict[str, TaskID] = {}

            def tell(what: str, done: int, total: int | None) -> None:
                name = title or what
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=None)
                progress.update(tasks[name], completed=done, total=total or None)

            yield tell

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


@contextmanager
def download_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for a download, below another bar where one is open.

    Args:
        title: what is downloaded.

    Yields:
        A function of the bytes so far and, where it is known, the size of the file.
    """
    screen = Screen.latest if Screen.latest and Screen.latest.is_terminal else Screen(stderr=True)
    with screen.progress(Words(), BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(f"download {title}", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def print_line(line: str) -> None:
    """Print one line where no bar is open."""
    Screen().say(line)


class Words(ProgressColumn):
    """A column of a bar that shows its title, or another text of the task."""

    def __init__(self, field: str = "", style: str = "") -> None:
        super().__init__(Column(no_wrap=True))
        self.field, self.style = field, style

    def render(self, task: Task) -> Text:
        return Text(printable(task.fields[self.field] if self.field else task.description), self.style)

"""The commands of the races: flags, tables and receipts."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Root:
    """A data set by its folder."""

    root: Path | None = None
    """The folder that holds the data set."""

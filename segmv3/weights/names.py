"""The published weight files that can be used by name; published.csv is the table.

`sha256` in it is the full digest where one is known, else the first eight digits, which the authors put into the
file's name. The full ones were found in other projects' records of the same files and begin with the published eight.
`resize` and `interpolation` are how the pictures were cut for the published accuracy of a classifier: torchvision's
presets and timm's pretrained_cfg. fastseg's files were trained on a part of the official val set.
"""

import csv
import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from segmv3.errors import CheckpointError
from segmv3.screen import download_bar, print_line
from segmv3.weights.download import Published, fetch
from segmv3.weights.importing import Imported, import_weights

DEFAULT = "mmseg/lraspp_m-v3-d8"
"""What `segmv3 predict` takes without being told: the best net for streets whose score on Cityscapes val counts."""


@cache
def _rows() -> dict[str, dict[str, str]]:
    text = files("segmv3.weights").joinpath("published.csv").read_text()
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}


@cache
def published() -> dict[str, Published]:
    """All published files by name: nets for streets, for other scenes, then classifiers."""
    fields = ("name", "url", "sha256", "licence", "source", "accuracy", "trained_on")
    return {name: Published(**{field: row[field] for field in fields}) for name, row in _rows().items()}


def default_net(say: Callable[[str], None]) -> str:
    """The name of the net that is taken without being asked; says its score and licence."""
    entry = published()[DEFAULT]
    say(f"net: {DEFAULT} ({entry.accuracy}; {entry.licence}); --weights takes another")
    return DEFAULT


def find(name: str, *, offline: bool = False, say: Callable[[str], None] = print_line) -> Imported:
    """The weights of a published name, downloaded unless they are in the cache, with a bar on a terminal.

    Raises:
        CheckpointError: there is no such name (the nearest are named), or the file cannot be had.
    """
    entries = published()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "segmv3 weights list shows them"
        raise CheckpointError(f"{name} is neither a file nor a published name; {hint}")
    entry = entries[name]
    with download_bar(name) as tell:
        path = fetch(entry, offline=offline, progress=tell, say=say)
    imported = import_weights(path)
    facts: dict[str, Any] = {"name": name, "url": entry.url, "licence": entry.licence, "published": entry.accuracy}
    if resize := _rows()[name]["resize"]:
        facts["view"] = {"resize": int(resize), "interpolation": _rows()[name]["interpolation"]}
    return replace(imported, origin=imported.origin | facts, notes=())

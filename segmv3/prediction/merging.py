"""Classes by name: those that a user picks, and those that a file merges into fewer."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmv3.errors import ConfigError, DataError, shortened
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, Classes, classes_of
from segmv3.records import read_regular

REST = "*"
"""In a merge file: all classes that no other entry names."""
_MAX_BYTES = 1_000_000


def ids_of(names: Iterable[str], classes: Classes, where: str) -> list[int]:
    """Train ids of classes, each once.

    Args:
        names: as the net calls them.
        classes: those of the net.
        where: the flag or file that names them.

    Raises:
        ConfigError: the net has no such class; the nearest names are told.
    """
    found: dict[int, None] = {}
    for name in names:
        if name not in classes.names:
            near = difflib.get_close_matches(name.lower(), classes.names, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"it has {shortened(', '.join(classes.names), 200)}"
            )
            raise ConfigError(f"{where}: the net has no class {name!r}; {hint}")
        found[classes.names.index(name)] = None
    return list(found)


@dataclass(frozen=True)
class Merge:
    """Classes made of a net's classes, read from a file."""

    path: Path
    classes: Classes
    sources: tuple[tuple[int, tuple[str, ...]], ...]
    """For each entry its train id (or IGNORE), and the classes of the net that become it."""

    def table(self, net: Classes) -> UInt8Array:
        """uint8 256: the train id that each of the net's becomes.

        Raises:
            ConfigError: a class is named that the net does not have, one is named twice, or one is left out.
        """
        table = np.full(256, IGNORE, np.uint8)
        taken: set[int] = set()
        for train_id, names in self.sources:
            ids = ids_of([name for name in names if name != REST], net, str(self.path))
            if twice := taken.intersection(ids):
                raise ConfigError(f"{self.path}: the class {net.names[min(twice)]!r} is merged twice")
            table[ids] = train_id
            taken.update(ids)
        left = [i for i in range(len(net)) if i not in taken]
        rest = next((train_id for train_id, names in self.sources if REST in names), None)
        if not left:
            return table
        if rest is None:
            missing = shortened(", ".join(net.names[i] for i in left), 120)
            raise ConfigError(f'{self.path} leaves out {missing}; add them to a class, or one with from = ["{REST}"]')
        table[left] = rest
        return table


def read_merge(path: Path) -> Merge:
    """Read a merge file.

        [[classes]]
        name = "ground"
        rgb = [128, 64, 128]           # may be left out
        from = ["road", "sidewalk"]    # classes of the net; "*" is all the others

    An entry has the fields of one in a `classes.json`, too: `id`, its place by default, and `ignore`.

    Raises:
        ConfigError: the file cannot be read or understood, or two entries have the same id or name.
    """
    try:
        text = read_regular(path, _MAX_BYTES)
    except ValueError as error:
        raise ConfigError(f"{path} {error}") from None
    try:
        entries = tomllib.loads(text.decode("utf-8-sig")).get("classes")
    except (ValueError, RecursionError) as error:  # also of UTF-8
        raise ConfigError(f"{path} cannot be understood ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path} holds no [[classes]] with name = "..." and from = [...]')
    for place, entry in enumerate(entries):
        before = sum(not earlier.get("ignore") for earlier in entries[:place])
        entry.setdefault("id", IGNORE - place if entry.get("ignore") else before)
        if unknown := sorted(entry.keys() - {"id", "name", "rgb", "from", "ignore"}):
            raise ConfigError(f"{path}: {unknown[0]!r} is no field of a class; there are id, name, rgb, from, ignore")
        names = entry.setdefault("from", [entry.get("name")])
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{path}: from must be a list of class names")
    try:
        classes, table = classes_of(entries, path)
    except DataError as error:
        raise ConfigError(error.args[0]) from None
    train_ids = dict(table.train_ids)
    if any(train_ids[entry["id"]] not in (entry["id"], IGNORE) for entry in entries):
        raise ConfigError(f"{path}: ids must be 0 to {len(classes) - 1}, each once")
    return Merge(path, classes, tuple((train_ids[entry["id"]], tuple(entry["from"])) for entry in entries))

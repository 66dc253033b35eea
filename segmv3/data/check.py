"""The check every run makes before it starts: each pair decodes, fits and holds only legal ids."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segmv3.data.datasets import Dataset, Pair
from segmv3.errors import DataError
from segmv3.files import cache_folder


def check(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> None:
    """Decode every pair of a split completely, once.

    Files that passed are remembered by path, size and modification time in the user's cache folder, so that a
    second run starts at once.

    Raises: DataError naming the first file that is damaged, has illegal ids, or another size than its partner.
    """
    record = _record_path(dataset)
    passed = _load(record)
    prints = [_print(pair) for pair in dataset.pairs]
    todo = [i for i, print_ in enumerate(prints) if print_ not in passed]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda i: dataset.read(i)[1].shape, todo)  # the pixels themselves are not kept
        try:
            for number, (index, _) in enumerate(zip(todo, sizes, strict=True), 1):
                passed.add(prints[index])
                if progress:
                    progress(number, len(todo))
        finally:
            pool.shutdown(cancel_futures=True)
            if todo:
                _store(record, passed)


def _print(pair: Pair) -> str:
    """Changes whenever either file does, or the table it is read by."""
    parts = [str(pair.table.train_ids)]
    for path in (pair.image, pair.label):
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); is it a link to nowhere?") from None
        parts.append(f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _record_path(dataset: Dataset) -> Path:
    place = hashlib.sha256(str(dataset.pairs[0].image.parent.absolute()).encode()).hexdigest()[:16]
    return cache_folder() / f"checked-{place}.json"


def _load(record: Path) -> set[str]:
    try:
        return set(json.loads(record.read_text()))
    except (OSError, ValueError):
        return set()


def _store(record: Path, passed: set[str]) -> None:
    """Losing this record costs a re-check, never correctness: an unwritable cache is no error."""
    part = record.with_suffix(f".{os.getpid()}.part")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(sorted(passed)))
        part.replace(record)
    except OSError:
        part.unlink(missing_ok=True)

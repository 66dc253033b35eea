"""Which backend runs a net: the fastest on this machine that computes the same as PyTorch."""

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmv3.checkpoint import Card
from segmv3.config import Data
from segmv3.errors import ModelError, OutputError, ResourceError, Segmv3Error
from segmv3.files import cache_folder, make_folder, write_bytes
from segmv3.images import UInt8Array
from segmv3.models.segmenter import Segmenter
from segmv3.runtime.backends import Arithmetic, Backend, BackendName, Size, TorchBackend
from segmv3.runtime.machine import cpu_flags, cpu_name, versions
from segmv3.runtime.proof import compare, refuse

_SIZE: Size = (512, 1024)
"""Of the drawn street that candidates are proved and timed on: half of Cityscapes'."""
_ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """A backend that could run the net. `open` gets it ready for images of the size it is given."""

    name: BackendName
    precision: Arithmetic
    open: Callable[[Size], Backend]

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate: why it is not used, or how long it takes."""

    title: str
    refusal: str
    milliseconds: float | None


def choose(model: Segmenter, card: Card, candidates: Sequence[Candidate], place: torch.device) -> Backend:
    """Open the fastest candidate that agrees with PyTorch's fp32; what was found is kept for the next time.

    Raises: ModelError when none agrees.
    """
    if [candidate.title for candidate in candidates] == ["torch fp32"]:  # it is the reference
        return candidates[0].open(_SIZE)
    file = _file(card, place)
    known = {verdict.title: verdict for verdict in _read(file)}
    opened: dict[str, Backend] = {}
    if any(candidate.title not in known for candidate in candidates):
        verdicts = _prove(model, candidates, place, opened)
        known |= {verdict.title: verdict for verdict in verdicts}
        _write(file, list(known.values()))
    best = min(candidates, key=lambda candidate: known[candidate.title].milliseconds or float("inf"))
    if known[best.title].milliseconds is None:
        raise ModelError("; ".join(known[candidate.title].refusal for candidate in candidates))
    return opened.get(best.title) or best.open(_SIZE)


def _prove(
    model: Segmenter, candidates: Sequence[Candidate], place: torch.device, opened: dict[str, Backend]
) -> list[Verdict]:
    image = _street()
    reference = TorchBackend(model, device=place, fold=False)
    refusals: dict[str, str] = {}
    for candidate in candidates:
        try:
            opened[candidate.title] = backend = candidate.open(_SIZE)
            refuse(compare(reference, backend, [image]), candidate.precision, candidate.title)
        except Segmv3Error as error:
            if len(candidates) == 1:
                raise
            refusals[candidate.title] = f"{candidate.title}: {error.args[0]}"
    times = _times({title: backend for title, backend in opened.items() if title not in refusals}, image)
    return [Verdict(c.title, refusals.get(c.title, ""), times.get(c.title)) for c in candidates]


def _times(backends: dict[str, Backend], image: UInt8Array) -> dict[str, float]:
    """Median milliseconds of each, in turns: what else the machine does meets all of them."""
    seconds: dict[str, list[float]] = {title: [] for title in backends}
    for _ in range(_ROUNDS):
        for title, backend in backends.items():
            start = time.perf_counter()
            backend.run(image[None])
            if backend.device == "cuda":
                torch.cuda.synchronize()
            seconds[title].append(time.perf_counter() - start)
    return {title: 1000 * statistics.median(each) for title, each in seconds.items()}


def _street() -> UInt8Array:
    """A drawn street, uint8 H x W x 3: no picture that could be shipped is needed."""
    from segmv3.data.datasets import open_dataset
    from segmv3.data.mini_city import write_mini_city

    with tempfile.TemporaryDirectory(prefix="segmv3-proof-") as folder:
        root = Path(folder) / "city"
        write_mini_city(root, train=1, val=1, size=_SIZE, seed=0)
        return np.ascontiguousarray(open_dataset(Data(dataset="cityscapes", root=root), "val").read(0)[0])


# --- what is known from former times ---


def _file(card: Card, place: torch.device) -> Path:
    facts = [card.sha256, place.type, str(torch.get_num_threads()), cpu_name(), *cpu_flags()]
    if place.type == "cuda":
        facts.append(torch.cuda.get_device_name())
    text = "\n".join([*facts, *(f"{name} {version}" for name, version in versions().items())])
    return cache_folder() / "backends" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> list[Verdict]:
    with suppress(OSError, ValueError, TypeError):  # a cache that cannot be read is made again
        entries: list[dict[str, Any]] = json.loads(file.read_text())
        return [Verdict(**entry) for entry in entries]
    return []


def _write(file: Path, verdicts: Sequence[Verdict]) -> None:
    with suppress(OutputError, ResourceError):  # without a cache everything works, only later
        make_folder(file.parent)
        write_bytes(file, json.dumps([vars(verdict) for verdict in verdicts], indent=1).encode(), durable=False)

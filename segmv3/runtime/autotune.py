"""Which backend runs a net: the fastest on this machine that computes the same as PyTorch."""

import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segmv3.checkpoint import Card
from segmv3.errors import ModelError, OutputError, ResourceError, Segmv3Error, Segmv3Warning
from segmv3.files import cache_folder, make_folder, write_bytes
from segmv3.images import UInt8Array, read_image
from segmv3.models.segmenter import Segmenter
from segmv3.records import read_json, typed
from segmv3.runtime.backends import Arithmetic, Backend, Size, TorchBackend
from segmv3.runtime.machine import cpu_flags, cpu_name, software
from segmv3.runtime.parity import compare, refuse

STREET = Path(__file__).with_name("street.png")
"""The street that candidates are proved and timed on: scene 0 of mini-city's val split, seed 0."""
STREET_SIZE: Size = (512, 1024)
"""Size of that picture: half of Cityscapes'."""
_ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """A backend that could run the net. `open` gets it ready, for images of `STREET_SIZE` first."""

    title: str
    precision: Arithmetic
    open: Callable[[], Backend]


@dataclass(frozen=True)
class Verdict:
    """Result for a candidate: why it is not used ("" where it agrees), and how long it takes."""

    refusal: str
    milliseconds: float


def choose(model: Segmenter, card: Card, candidates: Sequence[Candidate], place: torch.device) -> Backend:
    """Open the fastest candidate that agrees with PyTorch's fp32; what was found is kept for the next time.

    Raises: ModelError when none agrees; with one candidate, whatever it raises.
    Warns: Segmv3Warning when one cannot be opened now that could be another time, because of a full disk for example.
    """
    if [candidate.title for candidate in candidates] == ["torch fp32"]:  # it is the reference
        return candidates[0].open()
    file = _file(card, place)
    known = _read(file)
    opened: dict[str, Backend] = {}
    if any(candidate.title not in known for candidate in candidates):
        found = _prove(model, candidates, place, opened)
        known |= found
        _write(file, known)
    agreeing = [one for one in candidates if one.title in known and not known[one.title].refusal]
    for candidate in sorted(agreeing, key=lambda one: known[one.title].milliseconds):
        try:
            return opened.get(candidate.title) or candidate.open()
        except Segmv3Error as error:
            if len(candidates) == 1:
                raise
            _warn(candidate, error)
    refusals = [known[one.title].refusal for one in candidates if one.title in known and known[one.title].refusal]
    raise ModelError("; ".join(refusals) or "no backend can be opened; see the warnings above")


def _prove(
    model: Segmenter, candidates: Sequence[Candidate], place: torch.device, opened: dict[str, Backend]
) -> dict[str, Verdict]:
    """The verdicts on all candidates but those that cannot be opened at present; those that agree go to `opened`."""
    image = np.ascontiguousarray(read_image(STREET))
    reference = TorchBackend(model, device=place, fold=False)
    verdicts: dict[str, Verdict] = {}
    for candidate in candidates:
        try:
            backend = candidate.open()
            refuse(compare(reference, backend, [(image, None)]), candidate.precision, candidate.title)
        except Exception as error:  # a package can be broken in any way; the others still run
            if len(candidates) == 1:
                raise error if isinstance(error, Segmv3Error) else _cannot_run(candidate, error) from None
            if isinstance(error, OutputError | ResourceError):
                _warn(candidate, error)
            else:
                refusal = error if isinstance(error, ModelError) else _cannot_run(candidate, error)
                verdicts[candidate.title] = Verdict(str(refusal.args[0]), 0)
        else:
            opened[candidate.title] = backend
    times = median_times(opened, image, _ROUNDS)
    return verdicts | {title: Verdict("", milliseconds) for title, milliseconds in times.items()}


def median_times(backends: Mapping[str, Backend], image: UInt8Array, rounds: int) -> dict[str, float]:
    """Median milliseconds of each net alone, in turns: what else the machine does meets all of them.

    Args:
        image: uint8 H x W x 3, RGB.
        rounds: how often each is timed, after a first call for getting ready.
    """
    seconds: dict[str, list[float]] = {title: [] for title in backends}
    for number in range(rounds + 1):
        for title, backend in backends.items():
            start = time.perf_counter()
            backend.run(image[None])
            if backend.device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[title].append(time.perf_counter() - start)
    return {title: 1000 * statistics.median(each) for title, each in seconds.items()}


def _cannot_run(candidate: Candidate, error: Exception) -> ModelError:
    reason = " ".join(str(error.args[0] if isinstance(error, Segmv3Error) else error).split())[:200]
    return ModelError(f"{candidate.title} cannot run here ({reason or type(error).__name__})")


def _warn(candidate: Candidate, error: Segmv3Error) -> None:
    text = f"{candidate.title} cannot be used now: {error.args[0]}; going on without it"
    warnings.warn(Segmv3Warning(text), stacklevel=4)


# --- what is known from former times ---


def _file(card: Card, place: torch.device) -> Path:
    facts = [card.sha256, place.type, str(torch.get_num_threads()), cpu_name(), *cpu_flags(), *software()]
    if place.type == "cuda":
        facts.append(torch.cuda.get_device_name())
    return cache_folder() / "backends" / f"{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> dict[str, Verdict]:
    with suppress(ValueError):  # a cache that cannot be read is made again
        entries = typed(read_json(file), dict[str, tuple[str, float]])
        return {title: Verdict(*entry) for title, entry in entries.items()}
    return {}


def _write(file: Path, verdicts: Mapping[str, Verdict]) -> None:
    entries = {title: (verdict.refusal, verdict.milliseconds) for title, verdict in verdicts.items()}
    with suppress(OutputError, ResourceError):  # all is found out again the next time
        make_folder(file.parent)
        write_bytes(file, json.dumps(entries, indent=1).encode(), durable=False)

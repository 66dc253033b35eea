"""How long low-resolution logits take to become labels: ours, and torch's resize and argmax, in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.metrics import CLASSES, street_maps
from segmv3.benchmark.timing import Progress, Times, time_in_turns
from segmv3.decode import label_map, label_map_and_confidence
from segmv3.errors import NumericsError

MARGIN = 1e-5
"""Where the two best classes are nearer than this, rounding decides and either label is right."""


class DecodingError(NumericsError):
    """An implementation gave other labels than torch's interpolate and argmax."""

    area = "benchmark"


# --- logits ---


@dataclass(frozen=True)
class Case:
    """Logits to decode: float32 1 x classes x h x w, contiguous, and the size (height, width) of the labels."""

    title: str
    logits: Tensor
    size: tuple[int, int]


def cases(size: tuple[int, int] = (1024, 2048), classes: int = CLASSES, *, stride: int = 8) -> list[Case]:
    """The two ends of what a net gives: a street, and noise in which no two neighbours agree.

    Raises: ConfigError for a size below 64 x 128.
    """
    low = (-(-size[0] // stride), -(-size[1] // stride))
    return [Case(name, make(low, size, classes), size) for name, make in (("street", _street), ("random", _random))]


def _street(low: tuple[int, int], size: tuple[int, int], classes: int) -> Tensor:
    """A drawn street: the share of each class in a low-resolution pixel, smoothed, as a net that is sure of its
    insides and not of its outlines would give it, with some noise."""
    truth = street_maps(size).guess.astype(np.int64) % classes
    shares = [
        cv2.resize((truth == c).astype(np.float32), low[::-1], interpolation=cv2.INTER_AREA) for c in range(classes)
    ]
    smooth = np.stack([cv2.GaussianBlur(share, (0, 0), 0.7) for share in shares])
    noise = np.random.default_rng(0).normal(scale=0.5, size=smooth.shape)
    return torch.from_numpy((10 * smooth + noise).astype(np.float32))[None]


def _random(low: tuple[int, int], size: tuple[int, int], classes: int) -> Tensor:
    return torch.randn(1, classes, *low, generator=torch.Generator().manual_seed(0))


# --- the implementations ---


def _resize_and_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)


@dataclass(frozen=True)
class Implementation:
    name: str
    prepare: Callable[[Case], Callable[[], Tensor]]
    """From a case to the function that is timed and returns the labels 1 x H x W."""


def _torch(case: Case) -> Callable[[], Tensor]:
    return lambda: _resize_and_argmax(case.logits, case.size)


def _torch_channels_last(case: Case) -> Callable[[], Tensor]:
    logits = case.logits.contiguous(memory_format=torch.channels_last)
    return lambda: _resize_and_argmax(logits, case.size)


def _torch_compiled(case: Case) -> Callable[[], Tensor]:
    compiled = torch.compile(_resize_and_argmax, dynamic=False)
    return lambda: compiled(case.logits, case.size)


def _ours(case: Case) -> Callable[[], Tensor]:
    return lambda: label_map(case.logits, case.size)


def _ours_channels_last(case: Case) -> Callable[[], Tensor]:
    logits = case.logits.contiguous(memory_format=torch.channels_last)
    return lambda: label_map(logits, case.size)


def _ours_confidence(case: Case) -> Callable[[], Tensor]:
    return lambda: label_map_and_confidence(case.logits, case.size)[0]


IMPLEMENTATIONS = (
    Implementation("segmv3 label_map", _ours),
    Implementation("segmv3 label_map, channels_last", _ours_channels_last),
    Implementation("segmv3 label_map_and_confidence", _ours_confidence),
    Implementation("torch interpolate + argmax", _torch),
    Implementation("torch interpolate + argmax, channels_last", _torch_channels_last),
    Implementation("torch interpolate + argmax, torch.compile", _torch_compiled),
)
"""Ours first: the others are compared with it."""


# --- timing ---


@dataclass(frozen=True)
class Timing:
    """How long an implementation takes; no times where it cannot run here."""

    name: str
    times: Times | None
    reason: str = ""
    """Why it was not measured."""


def time_decoders(
    case: Case,
    repeat: int,
    *,
    implementations: Sequence[Implementation] = IMPLEMENTATIONS,
    progress: Progress | None = None,
) -> list[Timing]:
    """Time each implementation, by turns as `segmv3.benchmark.timing` takes them.

    Before that each is called once: it compiles, and its labels are compared with torch's.

    Raises: DecodingError when labels differ where rounding does not decide.
    """
    expected, near = _expected(case)
    ready: dict[str, Callable[[], Tensor]] = {}
    reasons: dict[str, str] = {}
    for one in implementations:
        try:
            run = one.prepare(case)
            labels = run()
        except Exception as error:  # torch.compile needs a C++ compiler; whatever ails a peer, the others are measured
            if one.name.startswith("segmv3"):
                raise
            reasons[one.name] = f"cannot run here ({' '.join(str(error).split())[:120]})"
            continue
        wrong = int(((labels != expected) & ~near).sum())
        if wrong:
            raise DecodingError(f"{one.name} gives {wrong:,} other labels than torch for the {case.title} logits")
        ready[one.name] = run
    times = time_in_turns(ready, repeat, progress=progress)
    return [Timing(one.name, times.get(one.name), reasons.get(one.name, "")) for one in implementations]


def _expected(case: Case) -> tuple[Tensor, Tensor]:
    """Torch's labels 1 x H x W, and where the two best classes are within `MARGIN`."""
    full = F.interpolate(case.logits, case.size, mode="bilinear", align_corners=False)
    best = full.topk(min(2, full.shape[1]), 1).values
    near = best[:, 0] - best[:, -1] < MARGIN if full.shape[1] > 1 else torch.zeros_like(best[:, 0], dtype=torch.bool)
    return full.argmax(1), near

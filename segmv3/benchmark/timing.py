"""Timing that can be compared: after a warm-up, in turns, on a machine that has nothing else to do."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segmv3.errors import Segmv3Error

Key = TypeVar("Key")
Measured = TypeVar("Measured")
Progress = Callable[[int, int, Any, Any], None]
"""Called after each call that counts, with (calls done, calls in all, key of what was called, what was measured)."""

_BUSY = 0.1
"""Share of the cores that other programs may use. More changes every median."""
_LEAST_TURNS = 3
_LONG = 1.0
"""Seconds. A longer call does not notice that its caches are cold at first."""


class BusyError(Segmv3Error):
    """Other programs use the machine, so that a measurement would say little."""

    area = "benchmark"


@dataclass(frozen=True)
class Times:
    """Seconds of every timed call, at least one."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        return float(np.quantile(self.seconds, 0.95))

    def facts(self) -> dict[str, Any]:
        """What a receipt holds of it, in milliseconds."""
        return {
            "median_ms": round(1000 * self.median, 3),
            "p95_ms": round(1000 * self.p95, 3),
            "ms": [round(1000 * value, 3) for value in self.seconds],
        }


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(
    measures: Mapping[Key, Callable[[], Measured]],
    repeat: int,
    *,
    budget: float | None = None,
    called: Mapping[Key, float] | None = None,
    progress: Progress | None = None,
) -> dict[Key, list[Measured]]:
    """Call all of them by turns, so that a machine that is busy for a while is busy for all.

    The first call of each does not count. Nor does the first call of every turn, unless calls take over a second: what
    ran before it has emptied the caches.

    Args:
        repeat: calls of each that count.
        budget: seconds. What would take longer is called less often, but no less than three times (or `repeat`, where
            that is fewer).
        called: seconds that a first call took, where there was one already.

    Returns:
        What the calls returned, in order.
    """
    lengths = dict(called or {})
    lengths |= {key: timed(measure) for key, measure in measures.items() if key not in lengths}
    counts = dict.fromkeys(measures, repeat)
    if budget is not None:
        for key in measures:
            each = lengths[key] if lengths[key] >= _LONG else 2 * lengths[key]
            counts[key] = min(repeat, max(_LEAST_TURNS, int(budget / max(each, 1e-9))))
    found: dict[Key, list[Measured]] = {key: [] for key in measures}
    for turn in range(repeat):
        for key, measure in measures.items():
            if turn * counts[key] // repeat == (turn + 1) * counts[key] // repeat:
                continue  # the turns of a slow one are spread evenly
            if lengths[key] < _LONG:
                measure()
            began = time.perf_counter()
            found[key].append(measure())
            lengths[key] = min(lengths[key], time.perf_counter() - began)  # first calls may compile
            if progress:
                progress(sum(map(len, found.values())), sum(counts.values()), key, found[key][-1])
    return found


def time_in_turns(
    calls: Mapping[Key, Callable[[], object]],
    repeat: int,
    *,
    budget: float | None = None,
    called: Mapping[Key, float] | None = None,
    progress: Progress | None = None,
) -> dict[Key, Times]:
    """Time calls, as `in_turns` does."""
    measures = {key: partial(timed, call) for key, call in calls.items()}
    found = in_turns(measures, repeat, budget=budget, called=called, progress=progress)
    return {key: Times(tuple(seconds)) for key, seconds in found.items()}


# --- what else the machine does ---


class Others:
    """CPU time that other programs use from now on, on the cores that this one may use."""

    def __init__(self) -> None:
        self._start = _clocks()

    def cores(self) -> float | None:
        """How many cores they kept busy on average; None where the system does not tell (it does on Linux)."""
        now = _clocks()
        if now is None or self._start is None:
            return None
        passed, busy, own = (after - before for before, after in zip(self._start, now, strict=True))
        return max(busy - own, 0.0) / passed if passed > 0 else None


def refuse_busy(*, force: bool = False, seconds: float = 1.0) -> float | None:
    """Watch the machine for a moment.

    Args:
        force: do not refuse.
        seconds: how long to watch.

    Returns:
        Cores that other programs used; None where that cannot be known.

    Raises:
        BusyError: they use a tenth of the cores or more.
    """
    others = Others()
    time.sleep(seconds)
    used, cores = others.cores(), core_count()
    if used is None and hasattr(os, "getloadavg"):
        with suppress(OSError):
            used = os.getloadavg()[0]
    if used is not None and used >= _BUSY * cores and not force:
        raise BusyError(
            f"other programs use {used:.1f} of {cores} CPU cores; wait for them or stop them, or measure all the same "
            "with --force (the receipt will say so)"
        )
    return used


def is_busy(used: float | None) -> bool:
    """Whether other programs used so many cores that a measurement suffered."""
    return used is not None and used >= _BUSY * core_count()


def core_count() -> int:
    """Cores that this process may use."""
    return len(_cores()) or os.cpu_count() or 1


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _clocks() -> tuple[float, float, float] | None:
    """Three times in seconds: the clock, what our cores worked, and the part of it for us and our children."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{core}" for core in _cores()}
    ticks = 0
    for line in lines:
        name, *values = line.split()
        if name in names:
            user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, values[:8])
            ticks += user + nice + system + interrupts + soft + stolen
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])

"""Peak memory of one implementation, measured in a process that does nothing else."""

import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from segmv3.errors import ResourceError


@dataclass(frozen=True)
class Peak:
    """MiB of resident memory of a process."""

    before: float
    """After Python, torch and segmv3 are loaded, without a net."""
    peak: float

    def facts(self) -> dict[str, int]:
        """What a receipt holds of it."""
        return {"before": round(self.before), "peak": round(self.peak)}


def peak_memory(work: Callable[[], object]) -> Peak:
    """Call a function in a fresh process, and see how large that became.

    Args:
        work: a function of a module, so that the process can import it. What it returns is dropped.

    Raises:
        Exception: what the function raises.
        ResourceError: the process was killed, as it is without memory.
    """
    # Forked, the process would begin with the memory of this one. Ctrl-C is for this one to obey.
    pool = ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        with pool:
            return pool.submit(_peak, work).result()
    except BrokenProcessPool:
        raise ResourceError("the process that measured memory was killed; there may be too little of it") from None


def _peak(work: Callable[[], object]) -> Peak:
    before = _resident()
    work()
    return Peak(before, _resident())


def _resident() -> float:
    """The peak so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would also tell of the process that this one was started by
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

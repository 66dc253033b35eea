"""Errors of the machine and of the data during a run: each becomes one line, and the work so far is kept."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from segmv3.data.loader import Batch
from segmv3.errors import DataError, Interrupted, OutOfMemoryError, ResourceError, Segmv3Error, is_out_of_memory
from segmv3.training.journal import Journal
from segmv3.training.processes import Setup
from segmv3.training.state import State, save


@contextmanager
def in_one_line(state: State) -> Iterator[None]:
    """Say in one line that a data worker died or memory ran out. Torch raises the first wherever the main thread is.

    Raises:
        ResourceError, OutOfMemoryError: in place of what torch raised.
    """
    try:
        yield
    except Segmv3Error:
        raise
    except Exception as error:
        died = _dead_worker(error)
        if not died and not is_out_of_memory(error):
            raise
        _let_go(error)
        where = f"in step {state.step + 1:,}; {state.kept}"
        advice = "fewer --data.workers need less memory and less of /dev/shm"
        if died:
            raise ResourceError(f"a data worker died or hung ({died}) {where}. Try again; {advice}") from None
        raise OutOfMemoryError(f"out of memory {where}. Use a smaller batch or crop; {advice}") from None


def _dead_worker(error: Exception) -> str:
    """What is known of the end of a data worker; empty for any other error."""
    if found := re.search(r"DataLoader (worker \(pid.*|timed out.*)", str(error)):
        return found[0].partition(". ")[0].rstrip(". ")
    lost = isinstance(error, ConnectionError | EOFError | BlockingIOError)  # on the way from it, or it cannot start
    return f"{type(error).__name__}: {error}" if lost else ""


def _let_go(error: Exception) -> None:
    traceback.clear_frames(error.__traceback__)  # else the workers wait 20 s for the garbage collector


def next_batch(batches: Iterator[Batch], state: State, setup: Setup, journal: Journal) -> Batch:
    """The next batch.

    Raises:
        DataError: a file broke since the check, or the check did not look at it. The state is saved.
    """
    try:
        with journal.waiting():
            return next(batches)
    except DataError as error:
        if setup.fabric.world_size == 1 and state.step > state.saved_step:  # the others would wait at the barrier
            journal.losses()
            save(state, setup)
        _let_go(error)
        line = str(error).strip().rpartition(f"{DataError.area}: ")[2]  # torch puts a worker's traceback before it
        raise DataError(f"{line}; {state.kept}") from None


def leave(state: State, setup: Setup, journal: Journal, signal_number: int) -> None:
    """Save the state and go.

    Raises:
        Interrupted: always.
    """
    if state.saved_step != state.step:
        journal.losses()
        save(state, setup)
    raise Interrupted(f"saved at step {state.step:,} in {setup.run.folder}; the same command goes on", signal_number)

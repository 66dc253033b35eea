"""Waiting for what may never come, and giving it up."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from threading import Thread, get_ident
from types import SimpleNamespace
from typing import Any, TypeVar

Result = TypeVar("Result")

PATIENCE = 0.5
"""Seconds that a thread has to end after it was told to give up."""

_GIVING_UP: list[int] = []
_LEAP = 1000.0  # seconds, more than anything is waited for


def given_up() -> bool:
    """Whether this thread is to stop waiting."""
    return get_ident() in _GIVING_UP


@contextmanager
def giving_up(*threads: int | None) -> Iterator[None]:
    """While the block runs, these threads stop waiting: those that ask `given_up`, and those that are in FFmpeg.

    FFmpeg cannot be told to let go of a connection, but PyAV looks at the clock for it ten times a second. For these
    threads that clock leaps, and their time is up. A PyAV that looks elsewhere waits as long as it may: then
    tests/test_waiting.py fails.
    """
    core: Any = sys.modules.get("av.container.core")
    mine, leaps = [thread for thread in threads if thread], count(1)
    _GIVING_UP.extend(mine)
    if mine and hasattr(core, "time"):
        leaping = SimpleNamespace(**vars(time))
        leaping.monotonic = lambda: time.monotonic() + (_LEAP * next(leaps) if given_up() else 0)
        core.time = leaping
    try:
        yield
    finally:
        for thread in mine:
            _GIVING_UP.remove(thread)
        if not _GIVING_UP and hasattr(core, "time"):
            core.time = time


def in_thread(call: Callable[[], Result]) -> Result:
    """Make a call that may wait for long. It runs in a thread, so that a signal is obeyed at once.

    After a signal a thread that does not end soon is left to itself.

    Returns:
        What the call returns; what it raises is raised.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(target=run, daemon=True, name="segmv3 waits")
    thread.start()
    try:
        return result.result()
    finally:
        with giving_up(thread.ident):
            thread.join(PATIENCE)

"""Ctrl-C, SIGTERM and a lost terminal during a run: the first signal asks, the second leaves."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_HANGUP = getattr(signal, "SIGHUP", None)


class StopRequest:
    """While open, SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process.

    A handler that saved would run in the middle of anything, a save included; the loop reads the flag where the
    state is whole. A second signal leaves at once without touching files.

    Attributes: signal: the number of the signal received, 0 before any.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread set handlers
        for number in _ASKING:
            if number == _HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the run outlives its terminal
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number

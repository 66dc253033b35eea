"""Ctrl-C, SIGTERM and a lost terminal during a run: the first signal asks, the second leaves."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_HANGUP = getattr(signal, "SIGHUP", None)


_ECHO = 0.5
"""Seconds in which the same request may come twice: `timeout` and torchrun pass on what the group got already."""


class StopRequest:
    """While open, SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process.

    A handler that saved would run in the middle of anything, a save included; the loop reads the flag where the
    state is whole. Python's handlers wait for the operation that runs in the main thread, which may take minutes; a
    thread therefore says at once that a signal was heard, and a second one leaves without touching files.

    Args:
        before_leaving: called by that thread before it ends the process.

    Attributes:
        signal: the number of the signal received, 0 before any.
    """

    def __init__(self, before_leaving: Callable[[], None] = lambda: None) -> None:
        self.signal = 0
        self._before_leaving = before_leaving
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread set handlers
        for number in _ASKING:
            if number == _HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the run outlives its terminal
            self._before[number] = signal.signal(number, self._on_signal)
        ours, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._ear.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=[ours], daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            self._ear.shutdown(socket.SHUT_RDWR)  # ends the thread, whoever else has inherited it
            self._ear.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self, ours: socket.socket) -> None:
        heard = 0.0
        with ours:
            while numbers := ours.recv(64):
                for number in numbers:
                    if number not in self._before:
                        continue
                    if not heard:
                        heard = time.monotonic()
                        self._say("stopping after this step, which is saved; a second signal leaves at once")
                    elif time.monotonic() - heard > _ECHO:
                        self._before_leaving()
                        os._exit(128 + number)

    def _say(self, line: str) -> None:
        """Once, where torchrun started several; not through `print`, which the main thread may be in."""
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # nobody reads our output
                os.write(1, f"{line}\n".encode())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number

"""Waiting for what never comes, and giving it up."""

import socket
import time
from threading import Thread

import av
import av.container.core
import pytest

from segmv3.waiting import giving_up, in_thread


def test_ffmpeg_lets_go_of_a_server_that_never_answers():
    """It relies on an internal of PyAV: where this fails, look for what av.container.core asks for the time."""
    assert av.container.core.time is time, "PyAV asks another clock: segmv3.waiting.giving_up has no effect"
    with socket.create_server(("127.0.0.1", 0)) as server:
        said: list[str] = []

        def opens() -> None:
            try:
                av.open(f"http://127.0.0.1:{server.getsockname()[1]}/street.mp4", timeout=60)
            except av.error.FFmpegError as error:
                said.append(type(error).__name__)

        thread = Thread(target=opens, daemon=True)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        with giving_up(thread.ident):
            thread.join(5)
        assert not thread.is_alive() and said, "PyAV no longer asks its clock while it waits"
    assert av.container.core.time is time


def test_a_pyav_without_that_clock_still_works(monkeypatch):
    monkeypatch.delattr(av.container.core, "time")
    with giving_up(1):
        assert not hasattr(av.container.core, "time")


def test_a_call_in_a_thread_gives_and_raises():
    assert in_thread(lambda: 7) == 7
    with pytest.raises(KeyError, match="gone"):
        in_thread(lambda: {}["gone"])

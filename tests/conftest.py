"""Small data sets on disk that every test can use."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import numpy as np
import pytest

from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.data.check import problems_in, refuse
from segmv3.images import write_png
from segmv3.models.zoo import NETS

LIMIT = 120
"""Seconds that a test waits for what should come at once: then it fails, and never hangs."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process whose standard output is read as text. It is killed when the block is left, or when it hangs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        killer = threading.Timer(LIMIT, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            killer.join()
            process.kill()


def stopped(command: list[str], number: int, count: int) -> tuple[int, int, str]:
    """Send a signal to a program that counts on its standard output, once it has come this far.

    Returns: its exit code, the last number that it told, and its standard error.
    """
    with running(command, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        told = next((line for line in process.stdout if int(line) >= count), "-1")
        process.send_signal(number)
        rest, errors = process.stdout.read(), process.stderr.read()
        return process.wait(), int((told + rest).split()[-1]), errors


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """A server that answers in a thread while the block runs."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(LIMIT)


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds a lock until it ends; within one process POSIX locks keep nobody out."""
    pytest.importorskip("fcntl")
    code = f"import fcntl, sys; f = open({str(path)!r}, 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()"]
    with running(command, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        yield process


def paint(seed: int, size: tuple[int, int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of stripes whose colour tells the class, so that a net can learn something from it."""
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(0, size[0], classes - 1))
    labels = np.repeat(np.searchsorted(edges, np.arange(size[0]))[:, None], size[1], axis=1).astype(np.uint8)
    colors = np.random.default_rng(0).integers(0, 256, (classes, 3))
    return np.clip(colors[labels] + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8), labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes in CamVid's layout, 6 train and 3 val pairs of 48x64."""
    root = tmp_path / "data"
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image, labels = paint(i + 10 * len(split), (48, 64), 4)
            write_png(root / split / "images" / f"scene_{i}.png", image)
            write_png(root / split / "labels" / f"scene_{i}.png", labels)
    classes = [{"id": i, "name": name} for i, name in enumerate(("road", "house", "tree", "sky"))]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    return root


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """19 classes in Cityscapes layout, 4 train and 2 val pairs of 48x64, as labelTrainIds."""
    root = tmp_path / "cityscapes"
    for split, city, count in (("train", "aachen", 4), ("val", "munster", 2)):
        for i in range(count):
            image, labels = paint(i, (48, 64), 19)
            stem = f"{city}_{i:06d}_000019"
            for kind, name, pixels in (
                ("leftImg8bit", f"{stem}_leftImg8bit.png", image),
                ("gtFine", f"{stem}_gtFine_labelTrainIds.png", labels),
            ):
                (root / kind / split / city).mkdir(parents=True, exist_ok=True)
                write_png(root / kind / split / city / name, pixels)
    return root


@pytest.fixture
def config(folder: Path) -> Config:
    """A run of 12 steps that takes a few seconds."""
    return Config(
        model=NETS["lraspp_small_d8"],
        data=Data(dataset="folder", root=folder, batch_size=2, crop_size=(32, 48), workers=0),
        optim=AdamW(lr=1e-3),
        schedule=Schedule(steps=12, min_lr=0, eval_every=6, save_every=4, log_every=3),
    )


def check(dataset, progress=None):
    """Read every pair of a split, and refuse it where one is damaged, as a training does."""
    refuse(problems_in(dataset, progress), dataset.split)

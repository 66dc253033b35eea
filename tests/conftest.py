"""Small data sets on disk that every test can use."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.data.check import problems_in, refuse
from segmv3.images import write_png
from segmv3.models.zoo import NETS

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds a lock until it ends; within one process POSIX locks keep nobody out."""
    pytest.importorskip("fcntl")
    code = f"import fcntl, sys; f = open({str(path)!r}, 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        try:
            yield process
        finally:
            process.kill()


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

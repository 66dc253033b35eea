"""The largest batch that fits: found once, kept by the run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from segmv3.config import SGD, Schedule
from segmv3.errors import ConfigError, OutOfMemoryError, OutputError
from segmv3.training import sizing
from segmv3.training.loop import train
from segmv3.training.run import Run
from segmv3.training.sizing import _on_cpu, _on_gpu, sized


@pytest.fixture
def automatic(config):
    return replace(
        config,
        data=replace(config.data, batch_size=0),
        schedule=Schedule(steps=4, min_lr=0, eval_every=2, save_every=2, log_every=1, accumulate=2),
    )


class Trial:
    """Of a step that needs 1 GB and 100 MB an image."""

    device = torch.device("cpu")

    def __init__(self, room=0):
        self.room, self.tried = room, []

    def __call__(self, batch):
        self.tried.append(batch)

    def fits(self, batch):
        self(batch)
        return batch <= self.room

    def peak(self, batch):
        self(batch)
        return 10**9 + 10**8 * batch


@pytest.mark.slow
def test_the_number_is_found_and_kept(automatic, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    own = replace(automatic, optim=SGD(lr=0.01, reference_batch=12))

    def interrupted(step, score):
        raise KeyError(step)

    with pytest.raises(KeyError):
        train(own, run, device="cpu", threads=1, on_evaluation=interrupted)
    assert "data.batch-size: 6, all that the training set has; the run keeps it" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["data"]["batch_size"] == 6

    monkeypatch.setattr(sizing, "_on_cpu", None)  # nothing is tried again
    done = train(own, run, device="cpu", threads=1)
    assert done.metrics["config"]["data"]["batch_size"] == 6
    assert "data.batch-size" not in capsys.readouterr().out
    rates = [entry["lr"] for entry in Run(run).log.entries() if entry["event"] == "train"]
    assert rates[0] == pytest.approx(0.01 * 6 / 12), "the linear rule sees the number"
    same = replace(own, data=replace(own.data, batch_size=6))
    assert train(same, run, device="cpu", threads=1) == done
    with pytest.raises(ConfigError, match=r"data.batch_size 6 -> 4"):
        train(replace(own, data=replace(own.data, batch_size=4)), run, device="cpu", threads=1)


def test_a_cpu_is_filled_by_half(monkeypatch):
    monkeypatch.setattr(sizing, "free_memory", lambda: 20e9)
    monkeypatch.setattr(sizing, "_status", lambda name: 5 * 10**8)
    trial = Trial()
    units, why = _on_cpu(trial, 1000, 2, lambda done: None)
    # what is held already is 0.5 GB: 0.5 + 10 GB = 1 GB + 95 images of 0.1 GB
    assert units == 47 and trial.tried == [4, 4, 8]
    assert why == "what fits into half of the 20.0 GB free, at 100 MB an image"
    assert _on_cpu(Trial(), 3, 2, lambda done: None)[0] == 3, "at most the training set"
    monkeypatch.setattr(sizing, "free_memory", lambda: 1e9)
    assert _on_cpu(Trial(), 1000, 2, lambda done: None)[0] < 1
    monkeypatch.setattr(sizing, "_FORGET", sizing.Path("/proc/self/nothing"))
    with pytest.raises(ConfigError, match="data.batch-size 0 needs a GPU, or Linux"):
        _on_cpu(Trial(), 10, 1, lambda done: None)


@pytest.mark.parametrize(("room", "most", "found"), [(37, 1000, 36), (999, 10, 20), (8, 1000, 8), (1, 1000, 0)])
def test_a_gpu_is_tried_until_it_is_full(room, most, found, monkeypatch):
    limits = []
    cuda = SimpleNamespace(
        get_per_process_memory_fraction=lambda device: 1.0,
        set_per_process_memory_fraction=lambda share, device: limits.append(share),
        get_device_properties=lambda device: SimpleNamespace(total_memory=80e9),
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    trial = Trial(room)
    units, why = _on_gpu(trial, most, 2, lambda done: None)
    assert units * 2 == found and len(trial.tried) == len(set(trial.tried)) <= 12
    assert why == "what fits into 90% of the GPU's 80.0 GB" and limits == [0.9, 1.0]


def test_what_cannot_be_found_is_one_line_and_leaves_nothing(automatic, tmp_path, monkeypatch):
    monkeypatch.setattr(sizing, "_on_cpu", lambda *_: (0, "half of nothing"))
    with pytest.raises(
        OutOfMemoryError, match=r"no batch of 2 fits into memory \(half of nothing\); use a smaller crop"
    ):
        train(automatic, tmp_path / "run", device="cpu", threads=1)
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    monkeypatch.setattr(sizing, "_on_cpu", None)  # not reached
    with pytest.raises(OutputError, match="is not empty and holds no run"):
        train(automatic, tmp_path / "other", device="cpu", threads=1)
    (tmp_path / "other" / "config.json").write_text('{"data": {"batch_size": "many"}}')
    with pytest.raises(ConfigError, match="names no batch; start again with another --run"):
        train(automatic, tmp_path / "other", device="cpu", threads=1)
    with pytest.raises(ConfigError, match="is found by one process alone"):
        sized(automatic, None, SimpleNamespace(world_size=2), Run(tmp_path / "run"), None)


def test_only_the_lack_of_memory_means_that_it_does_not_fit(monkeypatch):
    def fail(self, batch):
        raise errors.pop()

    monkeypatch.setattr(sizing._Trial, "__call__", fail)
    trial, errors = object.__new__(sizing._Trial), [ValueError("else"), torch.OutOfMemoryError("out of memory")]
    assert not trial.fits(1)
    with pytest.raises(ValueError, match="else"):
        trial.fits(1)

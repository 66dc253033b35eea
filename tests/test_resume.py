"""A run that was killed ends in the same bits as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import crash
import pytest
from conftest import locked_elsewhere

from segmv3 import checkpoint
from segmv3.config import Schedule
from segmv3.errors import ConfigError, OutputError, ResourceError
from segmv3.training.console import RunConsole
from segmv3.training.loop import train
from segmv3.training.signals import StopRequest


@pytest.fixture(scope="module")
def unbroken() -> dict[str, str]:
    return {}


def reference(config, unbroken) -> str:
    """The digest of the unbroken run; every test gets its own copy of the same pictures."""
    if not unbroken:
        folder = config.data.root.parent / "unbroken"
        assert crash.run(config, folder) == 0
        unbroken["digest"] = crash.digest(folder)
    return unbroken["digest"]


@pytest.mark.parametrize(
    ("point", "occurrence", "left"),
    [
        pytest.param(
            "state written but not renamed",
            2,
            [".step_00000006.pt.part", "step_00000004.json", "step_00000004.pt"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "state renamed, manifest missing",
            1,
            [".step_00000004.json.part", "step_00000004.pt"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "manifest written, old state not pruned",
            1,
            [f"step_{s:08d}.{k}" for s in (4, 6, 8) for k in ("json", "pt")],
            marks=pytest.mark.slow,
        ),
        ("between saves", 8, [f"step_{s:08d}.{k}" for s in (4, 6) for k in ("json", "pt")]),
    ],
)
def test_killed_at(point, occurrence, left, config, tmp_path, unbroken):
    expected = reference(config, unbroken)
    run = tmp_path / "run"
    assert crash.run(config, run, point, occurrence) == 9
    assert sorted(p.name for p in (run / "state").iterdir()) == left
    assert not (run / "report.html").exists()
    assert crash.run(config, run) == 0
    assert crash.digest(run) == expected
    steps = [entry["step"] for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines())]
    assert steps == sorted(steps) and steps.count(12) == 2  # the log tells it once: one train line, one eval line
    print(f"{point} (occurrence {occurrence}): same SHA-256 {expected[:16]} over weights and optimiser")


@pytest.mark.slow
def test_killed_again_and_again(config, tmp_path, unbroken):
    expected = reference(config, unbroken)
    run = tmp_path / "run"
    for _ in range(2):  # at steps 4 and 8: a save lies between
        assert crash.run(config, run, "between saves", 5) == 9
    assert crash.run(config, run) == 0
    assert crash.digest(run) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_stop_saves_and_resumes(number, code, config, tmp_path, monkeypatch, capsys):
    """Real processes, the signal going to the whole group as Ctrl-C does, workers included."""
    file = tmp_path / "config.py"
    config = replace(
        config,
        data=replace(config.data, workers=2),
        schedule=Schedule(steps=4000, min_lr=0, eval_every=1000, save_every=500, log_every=1),
    )
    file.write_text(f"from pathlib import *\nfrom segmv3.config import *\nconfig = {config!r}\n")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "segmv3", "train", str(file), "--run", str(run), "--threads", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = run / "log.jsonl"
    deadline = time.monotonic() + 90
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert err.startswith("interrupted: saved at step ") and err.count("\n") == 1
    [step] = checkpoint.saved_steps(run / "state")
    assert f"saved at step {step:,} " in err and step > 0

    def begin(self, done):
        raise KeyError(done)  # enough seen

    monkeypatch.setattr(RunConsole, "begin", begin)
    with pytest.raises(KeyError, match=f"^{step}$"):
        train(config, run, device="cpu", threads=1)
    assert capsys.readouterr().out == f"resuming {run} at step {step:,} of 4,000\n"


def test_a_finished_run_says_so_and_does_nothing(config, tmp_path, capsys):
    best = train(config, tmp_path / "run", device="cpu")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert train(config, tmp_path / "run", device="cpu") == best
    assert "is finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_run_whose_states_were_deleted_keeps_its_weights(config, tmp_path):
    train(config, tmp_path / "run", device="cpu")
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "state")
    train(config, tmp_path / "run", device="cpu")  # finished all the same
    (tmp_path / "run" / "report.html").unlink()
    with pytest.raises(ConfigError, match="holds weights but no training state"):
        train(config, tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best


def test_other_images_are_refused(config, tmp_path):
    train(config, tmp_path / "run", device="cpu")
    for kind in ("images", "labels"):
        (config.data.root / "train" / kind / "scene_5.png").unlink()
    with pytest.raises(ConfigError, match="the images of train are not those"):
        train(config, tmp_path / "run", device="cpu")


def test_other_settings_are_shown_and_refused(config, tmp_path):
    train(config, tmp_path / "run", device="cpu")
    changed = replace(config, optim=replace(config.optim, lr=0.5), data=replace(config.data, workers=1))
    with pytest.raises(ConfigError, match=r"other settings: optim\.lr 0\.001 -> 0\.5\. Use another --run"):
        train(changed, tmp_path / "run", device="cpu")


@pytest.mark.slow
def test_a_folder_that_another_process_trains_in_is_refused(config, tmp_path):
    train(config, tmp_path / "run", device="cpu")
    (tmp_path / "run" / "report.html").unlink()
    before = state_files(tmp_path / "run")
    with (
        locked_elsewhere(tmp_path / "run" / "run.lock"),
        pytest.raises(OutputError, match=r"another process trains in .*run; wait for it, stop it, or use another"),
    ):
        train(config, tmp_path / "run", device="cpu")
    assert state_files(tmp_path / "run") == before
    train(config, tmp_path / "run", device="cpu")


def state_files(run):
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_full_disk_at_the_first_evaluation_is_gone_on_from(config, tmp_path, monkeypatch):
    config = replace(config, schedule=replace(config.schedule, eval_every=4, save_every=4))

    def full(*_):
        raise ResourceError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", full)
        with pytest.raises(ResourceError):
            train(config, tmp_path / "run", device="cpu", threads=1)
    assert not (tmp_path / "run" / "best.safetensors").exists()  # weights without a state could not be gone on from
    train(config, tmp_path / "run", device="cpu", threads=1)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals to lose")
@pytest.mark.parametrize(("before", "asked"), [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)])
def test_nohup_is_obeyed(before, asked):
    handler = signal.signal(signal.SIGHUP, before)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == asked
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_folder_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(OutputError, match="thesis is not empty and holds no run"):
        train(config, tmp_path / "thesis", device="cpu")
    assert [p.name for p in Path(tmp_path / "thesis").iterdir()] == ["chapter.txt"]

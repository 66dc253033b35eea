"""A run that was killed ends in the same bits as one that was not."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import crash
import pytest
import torch
from conftest import locked_elsewhere

from segmv3 import checkpoint
from segmv3.config import Schedule
from segmv3.errors import CheckpointError, ConfigError, NumericsError, OutputError, ResourceError
from segmv3.training.loop import train
from segmv3.training.progress import RunConsole
from segmv3.training.run import Run, RunLog
from segmv3.training.signals import StopRequest


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Any]:
    """What was trained once for all tests."""
    return {}


def reference(config, unbroken) -> str:
    """The digest of the unbroken run; every test gets its own copy of the same pictures."""
    if "digest" not in unbroken:
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
            [".segmv3-*.part", "step_00000004.json", "step_00000004.pt"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "state renamed, manifest missing",
            1,
            [".segmv3-*.part", "step_00000004.pt"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "manifest written, old state not pruned",
            1,
            [f"step_{s:08d}.{k}" for s in (4, 6, 8) for k in ("json", "pt")],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "between saves",
            8,
            [f"step_{s:08d}.{k}" for s in (4, 6) for k in ("json", "pt")],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_at(point, occurrence, left, config, tmp_path, unbroken):
    expected = reference(config, unbroken)
    run = tmp_path / "run"
    assert crash.run(config, run, point, occurrence) == 9
    names = sorted(p.name for p in (run / "state").iterdir())
    assert len(names) == len(left) and all(map(fnmatch, names, left))
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
    assert "stopping after this step, which is saved; a second signal leaves at once" in out
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_second_signal_leaves_while_the_main_thread_calculates():
    script = (
        "import torch\n"
        "from segmv3.training.signals import StopRequest\n"
        "a = torch.rand(6000, 6000)\n"
        "torch.set_num_threads(1)\n"
        "with StopRequest(lambda: print('workers killed', flush=True)):\n"
        "    print('begun', flush=True)\n"
        "    torch.linalg.eigh(a + a.T)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        time.sleep(0.3)  # into the decomposition, which takes minutes
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("stopping after this step")
        time.sleep(0.7)  # not an echo of the first
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "workers killed\n"
        assert process.wait(timeout=30) == 143


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc")
def test_a_run_that_is_left_at_once_goes_on_from_its_last_state(config, tmp_path, unbroken):
    """Two signals in a step that takes long: the states are untouched, no worker stays."""
    expected = reference(config, unbroken)
    run = tmp_path / "run"
    file = tmp_path / "config.py"
    file.write_text(f"from pathlib import *\nfrom segmv3.config import *\nconfig = {config!r}\n")
    script = (
        "import sys, torch\n"
        "from segmv3.cli import main\n"
        "from segmv3.training import loop\n"
        "rate, a = loop.lr_at, torch.rand(6000, 6000)\n"
        "def slow(step, *rest):\n"
        "    if step == 9:\n"
        "        print('slow step', flush=True)\n"
        "        torch.linalg.eigh(a + a.T)\n"
        "    return rate(step, *rest)\n"
        "loop.lr_at = slow\n"
        "sys.exit(main())\n"
    )
    flags = ["train", str(file), "--run", str(run), "--threads", "1", "--data.workers", "2"]
    with subprocess.Popen([sys.executable, "-c", script, *flags], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while process.stdout.readline() != "slow step\n":
            pass
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        states = {path: path.read_bytes() for path in (run / "state").iterdir()}
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("stopping after this step")
        time.sleep(0.7)  # not an echo of the first
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert len(workers) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
    assert {path: path.read_bytes() for path in (run / "state").iterdir()} == states
    assert crash.run(config, run) == 0
    assert crash.digest(run) == expected


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


# --- a run that gets more steps ---


def longer(config, steps):
    return replace(config, schedule=replace(config.schedule, steps=steps))


@pytest.mark.slow
def test_a_finished_run_gets_more_steps(config, tmp_path, capsys):
    run = tmp_path / "run"
    train(config, run, device="cpu", threads=1)
    with pytest.raises(ConfigError, match=r"schedule.steps 12 -> 24. Add --extend to train on, or use another --run"):
        train(longer(config, 24), run, device="cpu", threads=1)
    assert (run / "report.html").is_file()
    capsys.readouterr()
    train(longer(config, 24), run, device="cpu", threads=1, extend=True)
    assert "extending" in (out := capsys.readouterr().out)
    assert "from 12 to 24 steps at step 12: the rate goes on along the new schedule (1.07e-04 -> 5.36e-04)" in out
    assert json.loads((run / "config.json").read_text())["extended"] == [{"from": 12, "to": 24, "at_step": 12}]
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"event": "extend", "step": 12, "from": 12, "to": 24} in entries
    assert [entry["step"] for entry in entries if entry["event"] == "eval"] == [6, 12, 18, 24]
    best = max((e for e in entries if e["event"] == "eval"), key=lambda entry: entry["miou"])
    assert json.loads((run / "metrics.json").read_text())["step"] == best["step"]
    assert checkpoint.saved_steps(run / "state")[0] == 24 and (run / "report.html").is_file()
    train(longer(config, 24), run, device="cpu")  # finished, as any other
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_an_extended_run_that_is_killed_ends_in_the_same_bits(config, tmp_path):
    """Killed at once after the settings were written, and again on its way."""
    train(config, tmp_path / "a", device="cpu", threads=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train(longer(config, 20), tmp_path / "a", device="cpu", threads=1, extend=True)
    before = json.loads((tmp_path / "b" / "config.json").read_text())
    Run(tmp_path / "b").extend(before | {"schedule": before["schedule"] | {"steps": 20}}, 12, 12)
    assert crash.run(longer(config, 20), tmp_path / "b", "between saves", 7) == 9
    assert crash.run(longer(config, 20), tmp_path / "b") == 0
    assert crash.digest(tmp_path / "b") == crash.digest(tmp_path / "a")


def test_what_is_no_extension_is_refused(config, tmp_path):
    run = tmp_path / "run"
    train(config, run, device="cpu", threads=1)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for other in (longer(config, 8), replace(longer(config, 24), seed=1)):
        with pytest.raises(ConfigError, match="was started with other settings"):
            train(other, run, device="cpu", extend=True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


# --- folders that were left, planted in, or spoilt ---


def test_what_a_killed_start_leaves_is_gone_on_from(config, tmp_path):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "state").rmdir()
    for name in (".segmv3-00.part", ".config.json.part", ".segmv3-write-test", "run.lock"):
        (run / name).touch()
    old = time.time() - 7200
    os.utime(run / ".segmv3-00.part", (old, old))
    train(longer(config, 2), run, device="cpu", threads=1)
    assert (run / "report.html").is_file() and not (run / ".segmv3-00.part").exists()


def test_a_start_looks_again_once_it_holds_the_folder(config, tmp_path):
    """Another process has begun a run with other settings since this one looked."""
    run = Run(tmp_path / "run")
    run.check({"seed": 1, "schedule": {"steps": 4}})
    run.folder.mkdir()
    run.settings_file.write_text('{"seed": 2, "schedule": {"steps": 4}}')
    with pytest.raises(ConfigError, match="seed 2 -> 1"), run.claimed({"seed": 1, "schedule": {"steps": 4}}):
        pass


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_planted_links_are_not_followed(config, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in (".config.json.part", ".segmv3-write-test"):
        (run / name).symlink_to(victim)
    train(longer(config, 2), run, device="cpu", threads=1)
    (run / "run.lock").unlink()
    (run / "run.lock").symlink_to(victim)
    (run / "report.html").unlink()
    with pytest.raises(OutputError, match="run.lock cannot be written .a link or a pipe is in its place: remove it"):
        train(longer(config, 2), run, device="cpu", threads=1)
    assert victim.read_text() == "mine"


@pytest.fixture
def stopped(config, tmp_path, unbroken):
    """A run that stands at step 8, with the states of steps 6 and 8; of equal pictures, made once for all tests."""
    if "stopped" not in unbroken:
        made = config.data.root.parent / "stopped"
        assert crash.run(config, made, "between saves", 9) == 9
        assert checkpoint.saved_steps(made / "state") == [8, 6]
        unbroken["stopped"] = made
    return shutil.copytree(unbroken["stopped"], tmp_path / "run")


def rewrite(run, step, change):
    """A state with other content and a digest that agrees."""
    path = run / "state" / f"step_{step:08d}.pt"
    content = change(torch.load(path, weights_only=True))
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"step": step, "sha256": digest}))


def infinite_moment(state):
    moment = next(iter(state["optimizer"]["state"].values()))["exp_avg"]
    moment[(0,) * moment.ndim] = float("inf")
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: [1, 2], "is no training state"),
        (lambda state: {k: v for k, v in state.items() if k != "optimizer"}, "is no training state"),
        (lambda state: state | {"step": 7}, "is the state of another step"),
        (lambda state: state | {"evaluations": [3]}, "is the state of another step"),
        (infinite_moment, "holds a value that is not finite (optimizer.state.0.exp_avg)"),
    ],
)
def test_a_state_of_other_content_is_passed_over(change, says, stopped):
    rewrite(stopped, 8, change)
    said: list[str] = []
    assert checkpoint.load_state(stopped / "state", said.append)["step"] == 6
    assert said == [f"checkpoint: step_00000008.pt {says}; resuming from step_00000006.pt"]


def of_another_net(state):
    first = next(iter(state["model"]))
    return state | {"model": state["model"] | {first: torch.zeros(3)}}


def moments_of_another_net(state):
    next(iter(state["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(3)
    return state


@pytest.mark.parametrize("change", [of_another_net, moments_of_another_net])
def test_a_state_of_another_net_is_one_line(change, config, stopped):
    rewrite(stopped, 8, change)
    with pytest.raises(CheckpointError, match="the state of step 8 in .* is of another net .*; start again") as caught:
        train(config, stopped, device="cpu", threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["null", "[1]", '{"step": "x", "event": "eval"}', '{"step": 1, "event": 2}', "[" * 9999 + "}"]
)
def test_a_log_of_something_else_is_one_line(text, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"event": "train", "step": 3, "loss": 1.5}\n' + text + "}"[: not text.endswith("}")] + "\n")
    with pytest.raises(ConfigError, match="log.jsonl: line 2 .*; start again with another --run"):
        RunLog(log).entries()


def test_no_state_is_written_with_a_value_that_is_not_finite(tmp_path):
    for key in ("model", "optimizer", "average"):
        state = {"model": {}, key: {"a": [torch.tensor([1.0, float("nan")])]}}
        with pytest.raises(NumericsError, match="a.0 is not finite"):
            checkpoint.save_state(tmp_path, 1, state)
    assert not list(tmp_path.iterdir())

"""Sweeps: the space as a file, what Optuna decides, stops and kills, the page."""

import importlib
import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import locked_elsewhere

from segmv3.cli import main
from segmv3.config import Config, load_config
from segmv3.errors import CheckpointError, ConfigError, Interrupted, NumericsError, OutputError, ResourceError
from segmv3.report.sweep import log_ticks, shown, write_sweep_page
from segmv3.sweep.space import Choices, Range, Space, flags, read_space, with_values
from segmv3.training.loop import train
from segmv3.training.segmentation import SegmentationTask

DOCS = Path(__file__).parents[1] / "docs" / "sweeps.md"

LR = '["optim.lr"]\nlow = 1e-4\nhigh = 1e-2\nlog = true\n'
SPACE = (
    "[sweep]\ntrials = 12\nseed = 3\n\n"
    + LR
    + '["loss.label_smoothing"]\nlow = 0.0\nhigh = 0.2\nstep = 0.1\n'
    + '["data.crop_size"]\nchoices = [[32, 48], [48, 64]]\n'
)


def read(text: str, config: Config, tmp_path: Path) -> Space:
    file = tmp_path / "space.toml"
    file.write_text(text)
    return read_space(file, config)


# --- the space ---


def test_a_space_says_what_the_file_says(config, tmp_path):
    text = SPACE + (
        '["loss.ohem"]\nchoices = ["none", 0.7, 1]\n'
        "[schedule.warmup-steps]\nlow = 0\nhigh = 8\nstep = 4\n"
        '["optim.decay_bn_and_bias"]\nchoices = [true, false]\n'
        '["loss.class_weights"]\nchoices = ["balanced", [1, 2.5, 3, 4]]\n'
    )
    space = read(text, config, tmp_path)
    assert (space.trials, space.seed, space.pruner, space.hours) == (12, 3, "median", None)
    assert space.settings == {
        "optim.lr": Range(1e-4, 1e-2, log=True),
        "loss.label_smoothing": Range(0.0, 0.2, step=0.1),
        "data.crop_size": Choices(((32, 48), (48, 64))),
        "loss.ohem": Choices((None, 0.7, 1.0)),
        "schedule.warmup_steps": Range(0, 8, step=4),
        "optim.decay_bn_and_bias": Choices((True, False)),
        "loss.class_weights": Choices(("balanced", (1, 2.5, 3, 4))),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sweep]\n", "names no setting"),
        ("a = [", "is not TOML"),
        ("lr = 1\n", "lr stands in no table"),
        ('["optim.lrr"]\nlow = 1\nhigh = 2\n', "no field 'optim.lrr'; did you mean 'optim.lr'?"),
        ('["lr"]\nlow = 1\nhigh = 2\n', "did you mean 'optim.lr'?"),
        ('["data.batch_sise"]\nchoices = [1]\n', "did you mean 'data.batch_size'?"),
        ('["optim"]\nchoices = [1]\n', "optim is a group of fields; name one of them, such as 'optim.lr'"),
        ('["optim.lr"]\nlow = 2\nhigh = 1\n', "low (2) must be below high (1)"),
        ('["optim.lr"]\nlow = 1\nhigh = 1\n', "low (1) must be below high (1)"),
        ('["optim.lr"]\nlow = 0\nhigh = 1\nlog = true\n', "log needs a low above 0, not 0"),
        ('["optim.lr"]\nlow = 1e-4\nhigh = 1e-2\nlog = 1\n', "log is true or false, not 1"),
        ('["optim.lr"]\nlow = 1\n', "needs 'high'"),
        ('["optim.lr"]\nlow = 1\nhigh = 2\nstep = 0\n', "must be above 0"),
        ('["optim.lr"]\nlow = 0.1\nhigh = 0.5\nstep = 0.3\n', "no whole number of steps"),
        ('["optim.lr"]\nlow = 1\nhigh = 2\nstep = 1\nlog = true\n', "log and step exclude each other"),
        ('["optim.lr"]\nlow = 1\nhigh = 2\nlogs = true\n', "has the key 'logs'"),
        ('["optim.lr"]\nlow = 1\nchoices = [2]\n', "has the key 'low'"),
        ('["optim.lr"]\nlow = nan\nhigh = 2\n', "low cannot be nan; it takes a number"),
        ('["optim.lr"]\nlow = "a"\nhigh = 2\n', 'low cannot be "a"; it takes a number'),
        ('["optim.lr"]\nchoices = []\n', "at least one"),
        ('["optim.lr"]\nchoices = [1, 1.0]\n', "twice"),
        ('["optim.lr"]\nchoices = [true]\n', "cannot be true; it takes a number"),
        ('["optim.lr"]\nchoices = ["none"]\n', 'cannot be "none"; it takes a number'),
        ('["schedule.steps"]\nlow = 1.5\nhigh = 3\n', "low cannot be 1.5; it takes a whole number"),
        ('["schedule.policy"]\nchoices = ["polly"]\n', 'cannot be "polly"; it takes "poly" or "cosine" or "step"'),
        ('["schedule.policy"]\nlow = 1\nhigh = 2\n', "give choices, not low and high"),
        ('["data.crop_size"]\nchoices = [[32]]\n', "cannot be [32]; it takes a list of 2 whole numbers"),
        ("[sweep]\ntrails = 3\n" + LR, "has the key 'trails'; did you mean 'trials'?"),
        ("[sweep]\ntrials = 0\n" + LR, "trials is 0; it must be at least 1"),
        ('[sweep]\npruner = "hyperband"\n' + LR, 'it takes "median" or "none"'),
        ("[sweep]\nhours = -1\n" + LR, "hours is -1; it must be above 0"),
        ("sweep = 3\n" + LR, "sweep must be a table"),
        (LR + "[optim.lr]\nchoices = [1]\n", "two tables for optim.lr"),
        ('["schedule.ema"]\nchoices = [0.9, 1.5]\n', "schedule.ema = 1.5 is no valid config: schedule.ema: must"),
        (LR + '["schedule.min_lr"]\nchoices = [0.0, 1e-3]\n', "optim.lr = 0.0001, schedule.min_lr = 0.001 is no valid"),
    ],
)
def test_a_space_that_cannot_be_used_is_one_line(text, says, config, tmp_path):
    with pytest.raises(ConfigError) as error:
        read(text, config, tmp_path)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("config: ") and "space.toml" in str(error.value)


def test_values_are_set_at_once(config):
    """One by one they would break a rule on the way: min-lr may not exceed lr."""
    config = with_values(config, {"optim.lr": 1e-3, "schedule.min_lr": 1e-3})
    low = with_values(config, {"optim.lr": 1e-5, "schedule.min_lr": 1e-5, "seed": 7})
    assert (low.optim.lr, low.schedule.min_lr, low.seed) == (1e-5, 1e-5, 7) and low.model is config.model


def test_flags_repeat_a_config(config, tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        "config = Config(model=NETS['lraspp_small_d8'], data=Data(dataset='folder', root=Path('x')), "
        "optim=AdamW(), schedule=Schedule(steps=12), loss=Loss(ohem=0.9))\n"
    )
    base = load_config(file)
    values = {"optim.lr": 0.0031, "data.crop_size": (32, 48), "loss.ohem": None, "optim.decay_bn_and_bias": True}
    values |= {"loss.class_weights": (1.0, 2.5), "schedule.policy": "cosine", "data.cache": Path("a b"), "seed": 4}
    wanted = with_values(base, values)
    assert load_config(file, flags(wanted, base)) == wanted
    assert flags(base, base) == []


def test_numbers_are_written_short():
    assert [shown(v) for v in (0.00321456, [512, 1024], None, True, 3, "poly")] == [
        "0.003215", "512 x 1024", "none", "true", "3", "poly"
    ]  # fmt: skip
    assert log_ticks(1e-4, 1e-2) == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert log_ticks(0.002, 0.004) == [0.002, 0.003, 0.004]
    assert len(log_ticks(1e-12, 1)) <= 5 and log_ticks(0.0012, 0.0014) == [0.0012, 0.0014]


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "segmv3.sweep.study", raising=False)
    with pytest.raises(ResourceError, match=r'pip install "segmv3\[sweep\]"'):
        importlib.import_module("segmv3.sweep.study")


# --- the trials, with a training that only pretends ---


class Pretence:
    """Stands for `train`: a score that grows to a height which the learning rate decides."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.stop_at: tuple[int, int] | None = None
        """(trial, step) where Ctrl-C comes."""
        self.error: Exception | None = None

    def __call__(self, config: Config, folder: Path, *, on_evaluation: Any, **_: Any) -> SimpleNamespace:
        if self.error:
            raise self.error
        self.trained.append(folder.name)
        (folder / "state").mkdir(parents=True, exist_ok=True)
        log = folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        height = 60 - 8 * abs(math.log10(config.optim.lr / 1e-3)) - 20 * config.loss.label_smoothing
        for step in range(2 * len(lines) + 2, config.schedule.steps + 1, 2):
            if self.stop_at == (int(folder.name[-4:]), step):
                self.stop_at = None
                raise Interrupted(f"saved at step {step} in {folder}", signal.SIGINT)
            entry = {"event": "eval", "step": step, "miou": height * step / config.schedule.steps}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            (folder / "state" / f"step_{step:08d}.json").write_text("{}")
            on_evaluation(step, entry["miou"])
        return SimpleNamespace(score=height)


@pytest.fixture
def pretence(monkeypatch) -> Pretence:
    pytest.importorskip("optuna")
    from segmv3.sweep import search

    pretence = Pretence()
    monkeypatch.setattr(search, "train", pretence)
    monkeypatch.setattr(search, "write_sweep_page", lambda folder, result: None)
    return pretence


def run(config: Config, space: Space, folder: Path) -> dict[str, Any]:
    from segmv3.sweep.search import sweep

    return sweep(config, space, folder, file=Path("tiny.py"), base=config, device="cpu", threads=1)


def told(result: dict[str, Any]) -> list[tuple]:
    return [(t["state"], t["score"], t["values"], t["evaluations"]) for t in result["trials"]]


def test_a_sweep_finds_prunes_and_repeats_itself(config, tmp_path, pretence):
    space = replace(read(SPACE, config, tmp_path), trials=25)
    result = run(config, space, tmp_path / "a")
    states = [trial["state"] for trial in result["trials"]]
    assert len(states) == 25 and set(states) == {"complete", "pruned"} and states[:5] == ["complete"] * 5
    for trial in result["trials"]:
        assert len(trial["evaluations"]) == (6 if trial["state"] == "complete" else trial["evaluations"][-1][0] / 2)
        assert not (tmp_path / "a" / f"trial_{trial['trial']:04}" / "state").exists()
    best = result["best"]
    assert best["score"] == max(trial["score"] for trial in result["trials"]) > 57
    assert best["command"].startswith("segmv3 train tiny.py --") and "--optim.lr" in best["command"]
    assert json.loads((tmp_path / "a" / "sweep.json").read_text())["best"]["trial"] == best["trial"]
    assert told(run(config, space, tmp_path / "b")) == told(result)
    assert told(run(config, replace(space, seed=4), tmp_path / "c")) != told(result)


def test_a_stopped_sweep_goes_on_as_if_it_had_not(config, tmp_path, pretence):
    space = read(SPACE, config, tmp_path)
    whole = told(run(config, space, tmp_path / "whole"))
    for stop in ((0, 2), (0, 6), (7, 4)):
        pretence.stop_at = stop
        with pytest.raises(Interrupted, match=f"saved at step {stop[1]} in .*trial_000{stop[0]}"):
            run(config, space, tmp_path / "stopped")
    assert told(run(config, space, tmp_path / "stopped")) == whole
    pretence.trained.clear()
    assert told(run(config, space, tmp_path / "stopped")) == whole and pretence.trained == []
    assert told(run(config, replace(space, trials=14, hours=5.0), tmp_path / "stopped"))[:12] == whole
    assert set(pretence.trained) <= {"trial_0012", "trial_0013"}


def test_a_kill_loses_nothing(config, tmp_path, pretence):
    """After the evaluation is in the run's log, before Optuna hears of it; and in the middle of Optuna's own line."""
    space = read(SPACE, config, tmp_path)
    whole = told(run(config, space, tmp_path / "whole"))
    pretence.stop_at = (3, 6)
    with pytest.raises(Interrupted):
        run(config, space, tmp_path / "killed")
    journal = tmp_path / "killed" / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b"intermediate" in lines[-1]
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    (tmp_path / "killed" / "study.journal.lock").symlink_to(journal)
    assert told(run(config, space, tmp_path / "killed")) == whole


def test_a_trial_killed_before_its_first_state_starts_again(config, tmp_path, pretence):
    space = replace(read(LR, config, tmp_path), trials=2)
    whole = told(run(config, space, tmp_path / "whole"))
    pretence.stop_at = (1, 2)
    with pytest.raises(Interrupted):
        run(config, space, tmp_path / "killed")
    (tmp_path / "killed" / "trial_0001" / "best.safetensors").write_bytes(b"of the evaluation that was not saved")
    assert told(run(config, space, tmp_path / "killed")) == whole
    assert not (tmp_path / "killed" / "trial_0001" / "best.safetensors").exists()


def test_a_sweep_goes_on_over_the_data_it_began_with_alone(config, tmp_path, pretence):
    space = replace(read(LR, config, tmp_path), trials=2)
    whole = told(run(config, space, tmp_path / "sweep"))
    classes = config.data.root / "classes.json"
    before = classes.read_text()
    classes.write_text(before.replace("sky", "air"))
    with pytest.raises(ConfigError, match=r'sweep was started with other classes/ids: id 3 "sky" -> "air"'):
        run(config, space, tmp_path / "sweep")
    classes.write_text(before)
    settings = tmp_path / "sweep/settings.json"
    kept = json.loads(settings.read_text())
    assert kept.pop("contents")["classes"] == ["road", "house", "tree", "sky"]
    settings.write_text(json.dumps(kept))  # of an earlier version
    assert told(run(config, space, tmp_path / "sweep")) == whole


def test_hours_end_a_sweep_between_trials(config, tmp_path, pretence, capsys):
    space = replace(read(LR, config, tmp_path), trials=3, hours=1e-9)
    assert run(config, space, tmp_path / "sweep")["best"] is None
    assert "hours are over after 0 of 3 trials; the same command goes on" in capsys.readouterr().out


def test_the_same_values_are_not_trained_twice(config, tmp_path, pretence):
    space = read('["schedule.policy"]\nchoices = ["poly", "cosine"]\n', config, tmp_path)
    result = run(config, replace(space, trials=8), tmp_path / "sweep")
    assert len(pretence.trained) == 2 and len(result["trials"]) == 8
    copies = [trial for trial in result["trials"] if trial["same_as"] is not None]
    assert len(copies) == 6 and all(trial["score"] == result["trials"][0]["score"] for trial in copies)
    assert Path(result["best"]["weights"]).parent.name in pretence.trained


def test_failures_are_recorded_and_three_in_a_row_end_it(config, tmp_path, pretence):
    space = read(LR, config, tmp_path)
    pretence.error = NumericsError("the loss became nan at step 3")
    with pytest.raises(ConfigError, match=r"3 trials in a row failed, the last one with: train: the loss became nan"):
        run(config, space, tmp_path / "sweep")
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [trial["state"] for trial in content["trials"]] == ["failed"] * 3 and content["best"] is None
    pretence.error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(ConfigError, match="out of memory"):
        run(config, space, tmp_path / "sweep")
    pretence.error = None
    result = run(config, replace(space, trials=8), tmp_path / "sweep")
    assert [trial["state"] for trial in result["trials"]] == ["failed"] * 6 + ["complete"] * 2
    pretence.error = OutputError("disk full")
    with pytest.raises(OutputError):  # no trial's fault: it goes on later
        run(config, replace(space, trials=9), tmp_path / "sweep")
    pretence.error = None
    assert run(config, replace(space, trials=9), tmp_path / "sweep")["trials"][8]["state"] == "complete"


def test_workers_beyond_memory_are_refused_before_a_trial(config, tmp_path):
    greedy = replace(config, data=replace(config.data, workers=100_000))
    with pytest.raises(ConfigError, match=r"data\.workers 100000: .* at most \d+ fit"):
        run(greedy, read(LR, config, tmp_path), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_folder_belongs_to_one_sweep(config, tmp_path, pretence, monkeypatch):
    space = replace(read(LR, config, tmp_path), trials=1)
    run(config, space, tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"other settings: config.seed 0 -> 5. Use another --output"):
        run(replace(config, seed=5), space, tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"space.optim.lr.high 0.01 -> 0.1"):
        run(config, read(LR.replace("1e-2", "1e-1"), config, tmp_path), tmp_path / "sweep")
    run(replace(config, data=replace(config.data, workers=1)), space, tmp_path / "sweep")
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match='teacher null -> "of another file"'):
        patch.setattr(SegmentationTask, "sources", {"teacher": "of another file"})
        run(config, space, tmp_path / "sweep")
    with pytest.raises(OutputError, match="holds no sweep"):
        run(config, space, tmp_path)
    (tmp_path / "sweep" / "study.journal").write_text("{}\n")
    with pytest.raises(CheckpointError, match="damaged"):
        run(config, space, tmp_path / "sweep")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        run(config, space, tmp_path / "other")


def test_two_processes_do_not_share_a_folder(config, tmp_path, pretence):
    space = replace(read(LR, config, tmp_path), trials=1)
    run(config, space, tmp_path / "sweep")
    with (
        locked_elsewhere(tmp_path / "sweep" / "sweep.lock"),
        pytest.raises(OutputError, match="another process sweeps in .*sweep; wait for it, stop it"),
    ):
        run(config, space, tmp_path / "sweep")


# --- the page ---


def test_the_page_tells_what_failed_and_trusts_no_text(tmp_path):
    common = {"step": None, "score": None, "evaluations": [], "same_as": None, "problem": None}
    trials = [
        common | {"trial": 0, "state": "failed", "values": {"optim.lr": 0.1}, "problem": "train: <b>nan</b>"},
        common | {"trial": 1, "state": "running", "values": {}},
    ]
    result: dict[str, Any] = {"net": "<i>", "dataset": "d", "split": "val", "metric": "miou", "metric_name": "mIoU"}
    result |= {"pruner": "median", "seed": 0, "wanted": 4, "best": None, "trials": trials}
    result["space"] = {"optim.lr": {"low": 0.1, "high": 0.4, "log": True, "step": None}}
    page = write_sweep_page(tmp_path, result).read_text()
    assert "&lt;b&gt;nan" in page and "<b>nan" not in page and "<h1>&lt;i&gt; on d" in page
    assert "<b>1</b><span>of 4 trials" in page and "1 failed" in page and "Best trial" not in page
    scored = {"score": 50.0, "step": 4, "evaluations": [[2, 40.0], [4, 50.0]], "values": {"optim.lr": 0.2}}
    trials += [common | {"trial": 2, "state": "complete"} | scored]
    trials += [common | {"trial": 3, "state": "pruned"} | scored | {"score": 39.0, "evaluations": [[2, 39.0]]}]
    result["best"] = trials[2] | {"weights": "w", "command": "segmv3 train 'a b.py' --optim.lr 0.2 --run x"}
    page = write_sweep_page(tmp_path, result).read_text()
    assert "<span>segmv3 train &#39;a b.py&#39;</span> <span>--optim.lr 0.2</span> <span>--run x</span>" in page
    assert page.index("<th>2</th>") < page.index("<tr class='absent'><th>3</th>")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["curves.png", "optim.lr.png"]


# --- for real ---


@pytest.mark.slow
def test_an_evaluation_can_end_a_run_that_goes_on_later(config, tmp_path):
    whole: list[tuple[int, float]] = []
    best = train(config, tmp_path / "whole", device="cpu", threads=1, on_evaluation=lambda *told: whole.append(told))
    assert [step for step, _ in whole] == [6, 12] and max(score for _, score in whole) == best.score

    def stop(step: int, score: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "cut", device="cpu", threads=1, quiet=True, on_evaluation=stop)
    rest: list[tuple[int, float]] = []
    train(config, tmp_path / "cut", device="cpu", threads=1, quiet=True, on_evaluation=lambda *told: rest.append(told))
    assert rest == whole[1:]


@pytest.fixture
def config_file(folder, tmp_path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        f"config = Config(model=NETS['lraspp_small_d8'], data=Data(dataset='folder', root=Path({str(folder)!r}), "
        "batch_size=2, crop_size=(32, 48), workers=0), optim=AdamW(lr=1e-3), "
        "schedule=Schedule(steps=4, min_lr=0, eval_every=2, log_every=1))\n"
    )
    return file


@pytest.mark.slow
def test_the_command_leaves_what_it_promises(config_file, tmp_path, capsys):
    pytest.importorskip("optuna")
    space = tmp_path / "space.toml"
    space.write_text(
        '[sweep]\nseed = 1\n["optim.lr"]\nlow = 1e-4\nhigh = 1e-2\nlog = true\n["data.flip"]\nchoices = [0, 0.5]\n'
    )
    out = tmp_path / "sweep"
    command = ["sweep", str(config_file), str(space), "--output", str(out), "--trials", "2", "--threads", "1"]
    assert main([*command, "--data.jitter", "0.25"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "sweep.json").read_text())
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 2
    best = result["best"]
    scores = json.loads((Path(best["weights"]).parent / "metrics.json").read_text())
    assert best["score"] == scores["miou"] and best["values"]["optim.lr"] == scores["config"]["optim"]["lr"]
    assert best["command"] in printed and "--data.jitter 0.25" in best["command"]
    page = (out / "sweep.html").read_text()
    assert "optim.lr" in page and "<b>2</b><span>of 2 trials" in page and "http" not in page.replace("http-equiv", "")
    assert not list(out.glob("trial_*/state")) and len(list(out.glob("trial_*/best.safetensors"))) == 2
    assert main([*command, "--seed", "3"]) == 2
    assert capsys.readouterr().err.startswith(f"config: {out} was started with other settings: ")
    assert main([*command, "--trials", "0"]) == 2
    assert main(["sweep", str(config_file), str(tmp_path / "none.toml"), "--output", str(out)]) == 2
    assert "cannot be read (No such file" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves_the_trial_and_the_same_command_goes_on(config_file, tmp_path, capsys):
    pytest.importorskip("optuna")
    text = config_file.read_text()
    config_file.write_text(text.replace("steps=4,", "steps=24,").replace("eval_every=2,", "eval_every=12,"))
    space = tmp_path / "space.toml"
    space.write_text("[sweep]\ntrials = 1\n" + LR)
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    command = ["sweep", str(config_file), str(space), "--threads", "1", "--output"]
    assert main([*command, str(whole)]) == 0
    log = out / "trial_0000" / "log.jsonl"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    capsys.readouterr()
    assert main([*command, str(out)]) == 130
    watcher.join()
    err = capsys.readouterr().err
    assert err.startswith("interrupted: saved at step ") and "the same command goes on" in err and err.count("\n") == 1
    assert len(list((out / "trial_0000" / "state").glob("*.pt"))) == 1
    assert main([*command, str(out)]) == 0
    a, b = (json.loads((folder / "sweep.json").read_text()) for folder in (whole, out))
    assert a["trials"] == b["trials"] and not (out / "trial_0000" / "state").exists()


def test_the_documented_space_is_one(config, tmp_path):
    text = DOCS.read_text().partition("```toml\n")[2].partition("```")[0]
    assert len(read(text, config, tmp_path).settings) >= 3

"""The manifest of a run, and the trackers that follow it."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from segmv3.cli import main
from segmv3.config import load_config
from segmv3.errors import ConfigError, Interrupted, ResourceError, Segmv3Warning
from segmv3.models.count import parameters
from segmv3.models.zoo import create_model
from segmv3.training.loop import train
from segmv3.training.manifest import read_manifest
from segmv3.training.run import Run
from segmv3.training.trackers import Tracker, open_trackers


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def steps(config, count, **more):
    return replace(config, schedule=replace(config.schedule, steps=count, eval_every=2, save_every=2, **more))


class Listener(Tracker):
    def __init__(self, fails=""):
        self.heard, self.fails = [], fails

    def begin(self, folder, manifest, step):
        self.heard.append(("begin", manifest["status"], step))

    def step(self, entry):
        if self.fails:
            raise OSError(self.fails)
        self.heard.append(("step", entry["step"]))

    def evaluation(self, entry, scores, panel):
        self.heard.append(("evaluation", entry["miou"], len(scores["classes"]), panel().shape[2]))

    def end(self, manifest):
        self.heard.append(("end", manifest["status"], manifest["step"]))


def test_a_run_says_what_it_was(config, tmp_path):
    listener = Listener()
    trained = train(steps(config, 2), tmp_path / "run", device="cpu", threads=1, track=[listener])
    found = manifest(tmp_path / "run")
    assert (found["status"], found["step"], found["images_seen"]) == ("finished", 2, 2 * config.data.batch_size)
    assert found["best"]["sha256"] == hashlib.sha256(trained.weights.read_bytes()).hexdigest()
    assert (found["best"]["score"], found["best"]["step"]) == (trained.score, 2)
    assert found["net"]["parameters"] == parameters(create_model(config.model, 4)) and found["net"]["gmacs"] > 0
    assert found["settings"]["optim"]["kind"] == type(config.optim).__name__
    assert found["settings"]["data"]["root"] == found["data"]["name"] == "data"  # no path of this machine
    assert str(tmp_path) not in (tmp_path / "run" / "manifest.json").read_text()
    assert (found["data"]["train"]["images"], found["data"]["val"]["images"]) == (6, 3)
    assert len(found["data"]["val"]["contents"]["labels"]) == 64 and found["start"] is None
    assert found["machine"]["threads"] == 1 and found["versions"]["torch"] and found["ended"] >= found["started"]
    assert read_manifest(Run(tmp_path / "run")) == found
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [("step", each["step"]) for each in log if each["event"] == "train"]
    assert listener.heard == [
        ("begin", "running", 0),
        *told,
        ("evaluation", trained.score, 4, 3),
        ("end", "finished", 2),
    ]


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_so_do_its_resumption_and_extension(config, tmp_path, monkeypatch):
    def stop(step, score):
        raise Interrupted("a test", 15)

    run, listener = tmp_path / "run", Listener()
    with pytest.raises(Interrupted):
        train(steps(config, 4), run, device="cpu", threads=1, on_evaluation=stop)
    found = manifest(run)
    assert (found["status"], found["step"], found["best"]["step"]) == ("interrupted", 2, 2)
    train(steps(config, 4), run, device="cpu", threads=1, track=[listener])
    train(steps(config, 6), run, device="cpu", threads=1, extend=True)
    later = manifest(run)
    assert listener.heard[0] == ("begin", "running", 2)
    assert [(each["from_step"], each["to_step"]) for each in later["sessions"]] == [(0, 2), (2, 4), (4, 6)]
    assert later["extended"] == [{"from": 4, "to": 6, "at_step": 4}] and later["started"] == found["started"]
    assert later["status"] == "finished" and later["images_seen"] == 6 * config.data.batch_size


def test_a_run_of_an_earlier_version_goes_on(config, tmp_path):
    def stop(step, score):
        raise KeyError("pruned")

    with pytest.raises(KeyError):
        train(steps(config, 4), tmp_path / "run", device="cpu", threads=1, on_evaluation=stop)
    assert manifest(tmp_path / "run")["status"] == "stopped"
    for content in ("{", '{"format": 1, "sessions": 3}', None):
        file = tmp_path / "run" / "manifest.json"
        file.unlink() if content is None else file.write_text(content)
        assert read_manifest(Run(tmp_path / "run")) == {}
    train(steps(config, 4), tmp_path / "run", device="cpu", threads=1)
    found = manifest(tmp_path / "run")
    assert found["started"] is None and found["sessions"][0]["from_step"] == 2 and found["status"] == "finished"


def test_start_weights_are_named_with_the_rows_that_were_kept(config, tmp_path):
    first = train(steps(config, 2), tmp_path / "first", device="cpu", threads=1)
    classes = config.data.root / "classes.json"
    classes.write_text(classes.read_text().replace("tree", "bush"))
    model = replace(config.model, pretrained=str(first.weights))
    train(steps(replace(config, model=model), 2), tmp_path / "second", device="cpu", threads=1)
    start = manifest(tmp_path / "second")["start"]
    assert start["weights"] == "best.safetensors" and start["sha256"] == manifest(tmp_path / "first")["best"]["sha256"]
    assert (start["classes_kept"], start["classes_new"]) == (["road", "house", "sky"], ["bush"])
    page = (tmp_path / "second" / "report.html").read_text()
    assert "best.safetensors" in page and start["sha256"] in page and "AdamW" in page


def test_the_config_and_its_commit_are_named(config, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "my.py"
    data = f"Data(dataset='folder', root=Path({str(config.data.root)!r}), batch_size=2, crop_size=(32, 48), workers=0)"
    file.write_text(
        "from pathlib import Path\nfrom segmv3.config import Config, Data, Schedule\n"
        "from segmv3.models.zoo import NETS\n"
        f"config = Config(model=NETS['lraspp_small_d8'], data={data},\n"
        "    schedule=Schedule(steps=1, eval_every=1, save_every=1, log_every=1, min_lr=0))\n"
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(file.parent)]
    for command in (["init", "-q"], ["add", "my.py"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    assert main(["train", str(file), "--run", str(tmp_path / "run"), "--threads", "1"]) == 0
    found = manifest(tmp_path / "run")
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert found["config_file"] == "my.py" and found["config_commit"].rstrip("+") == head.strip()
    assert load_config(file).schedule.steps == found["step"]


def test_a_tracker_that_fails_does_not_end_the_run(config, tmp_path):
    broken, good = Listener("the server is gone"), Listener()
    with pytest.warns(Segmv3Warning, match=r"Listener failed \(OSError: the server is gone\) and is left out"):
        train(steps(config, 2), tmp_path / "run", device="cpu", threads=1, track=[broken, good])
    assert [each[0] for each in broken.heard] == ["begin"] and good.heard[-1] == ("end", "finished", 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wandb", "--track wandb: there is tensorboard, trackio, or MODULE:CLASS"),
        ("json:dumps", "--track json:dumps fails with TypeError"),
        ("nowhere:Mine", "--track nowhere:Mine fails with ModuleNotFoundError"),
        ("builtins:dict", "--track builtins:dict is no tracker; derive it from"),
    ],
)
def test_what_is_no_tracker_is_refused(name, said):
    with pytest.raises(ConfigError) as caught:
        open_trackers([name])
    assert said in str(caught.value)


def test_trackio_gets_the_numbers_and_its_absence_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ResourceError, match=r'--track trackio needs the package trackio: pip install "segmv3\[trackio'):
        open_trackers(["trackio"])
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end"))
    package = SimpleNamespace(init=lambda **how: calls.append(how) or run, Image=lambda pixels: "picture")
    monkeypatch.setitem(sys.modules, "trackio", package)
    (tracker,) = open_trackers(["trackio", "trackio"])
    facts = {name: {"a": 1} for name in ("settings", "net", "machine", "versions")} | {"start": None}
    tracker.begin(tmp_path / "mine", facts, 4)
    tracker.step({"event": "train", "step": 5, "loss": 0.5})
    rows = [{"name": "sky", "iou": 80.0}, {"name": "train", "iou": None}]
    tracker.evaluation({"event": "eval", "step": 6, "miou": 80.0}, {"classes": rows}, lambda: 1)
    tracker.end({})
    assert calls[0]["name"] == "mine" and calls[0]["resume"] == "allow" and calls[0]["config"]["settings.a"] == 1
    assert calls[1:] == [
        (5, {"train/loss": 0.5}),
        (6, {"eval/miou": 80.0, "IoU/sky": 80.0, "samples": "picture"}),
        "end",
    ]

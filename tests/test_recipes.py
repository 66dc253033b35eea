"""configs/recipes and the tools beside them: every file loads, every net builds, what is linked is what is meant."""

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from segmv3.config import Config, Data, load_config, to_dict
from segmv3.data.datasets import open_dataset
from segmv3.models.count import gmacs, parameters
from segmv3.models.zoo import create_model
from segmv3.training.optim import lr_at

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.py"))
NAMES = {path.stem for path in RECIPES}


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_its_net_builds(path):
    config = load_config(path)
    assert isinstance(config, Config) and json.loads(json.dumps(to_dict(config)))
    classes = 11 if config.data.dataset == "camvid" else 19
    with torch.device("meta"):
        net = create_model(config.model, classes)
    net.check_trainable(config.data.batch_size, config.data.crop_size)
    schedule = config.schedule
    assert lr_at(schedule.warmup_steps, config.optim.lr, schedule) == pytest.approx(config.optim.lr)
    assert schedule.eval_every <= schedule.steps / 10  # a curve, not two points
    assert schedule.steps % schedule.eval_every == 0 or schedule.eval_every < schedule.steps / 15
    weights = config.loss.class_weights
    assert isinstance(weights, str) or len(weights) == classes

    said = path.read_text()
    size = (360, 480) if classes == 11 else (1024, 2048)
    with torch.device("meta"):
        counted = f"{parameters(net):,}", f"{gmacs(net, size):.2f} GMACs"
    for fact in (*counted, f"configs/recipes/{path.name}", "Recipe:", "Cost:", "Score:", "unmeasured"):
        assert fact in said, fact
    score = said[said.index("Score:") :].splitlines()[0]
    assert "not measured" in score or "docs/results" in score


def test_the_rows_are_there():
    for row in ("paper", "long", "best", "plus", "distilled"):
        assert f"cityscapes_{row}" in NAMES
    for row in ("plain", "best", "0006r0_plain", "0006r0_best"):
        assert f"camvid_{row}" in NAMES


def test_rows_that_are_compared_differ_in_what_they_say_only():
    """The best recipe and the plus net's: another net and nothing else; distilled: a teacher and nothing else."""
    best, plus, distilled = (
        load_config(ROOT / "configs" / "recipes" / f"cityscapes_{n}.py") for n in ("best", "plus", "distilled")
    )
    assert replace(plus, model=best.model) == best != plus
    assert replace(distilled, distill=best.distill) == best != distilled
    here, held = (load_config(ROOT / "configs" / "recipes" / f"camvid_{n}.py") for n in ("best", "0006r0_best"))
    assert (here.model, here.optim, here.precision) == (held.model, held.optim, held.precision)
    for config, frames in ((here, 367), (held, 266)):  # 1,000 epochs each
        assert config.schedule.steps * config.data.batch_size / frames == pytest.approx(1000, rel=0.01)


@pytest.fixture
def camvid(folder):
    for kind in ("images", "labels"):
        for i, file in enumerate(sorted((folder / "train" / kind).iterdir())):
            file.rename(file.with_name(f"{'0006R0' if i < 2 else '0001TP'}_{i:06d}.png"))
    return folder


def hold_out(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "camvid_holdout.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_drive_is_held_out(camvid, tmp_path):
    done = hold_out(camvid, tmp_path / "held")
    assert done.returncode == 0 and "4 frames to train on, 2 of 0006R0 as val" in done.stdout
    data = Data(dataset="camvid", root=tmp_path / "held")
    train, val = open_dataset(data, "train"), open_dataset(data, "val")
    assert [pair.image.name for pair in val.pairs] == ["0006R0_000000.png", "0006R0_000001.png"]
    assert len(train) == 4 and all(pair.image.name.startswith("0001TP_") for pair in train.pairs)
    again = hold_out(camvid, tmp_path / "held")
    assert again.returncode == 2 and "exists" in again.stderr and again.stderr.count("\n") == 1


def test_every_drive_is_held_out_in_turn(camvid, tmp_path):
    done = hold_out(camvid, tmp_path / "drives", "--drive", "all")
    assert done.returncode == 0 and sorted(each.name for each in (tmp_path / "drives").iterdir()) == [
        "0001TP",
        "0006R0",
    ]
    for drive in ("0001TP", "0006R0"):
        data = Data(dataset="camvid", root=tmp_path / "drives" / drive)
        train, val = ({pair.image.name[:6] for pair in open_dataset(data, split).pairs} for split in ("train", "val"))
        assert val == {drive} and train == {"0001TP", "0006R0"} - {drive}
    labels = [cv2.imread(str(file), 0) for file in (tmp_path / "drives" / "0006R0" / "train" / "labels").iterdir()]
    counts = np.bincount(np.concatenate([each.ravel() for each in labels]), minlength=256)
    classes = len(open_dataset(data, "train").classes)
    weights = np.sqrt(np.median(counts[:classes]) / counts[:classes])
    said = done.stdout.splitlines()[-1].partition("class-weights ")[2].split()
    assert [float(each) for each in said] == pytest.approx(weights, abs=0.006)


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [("data", ["--drive", "Seq05VD"], "there are 0001TP, 0006R0"), ("nowhere", [], "nowhere")],
)
def test_what_cannot_be_held_out_is_one_line(source, flags, says, camvid, tmp_path):
    done = hold_out(camvid.parent / source, tmp_path / "held", *flags)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("held*"))


# --- tools/gpu_training.py ---


@pytest.fixture
def gpu():
    return tool("gpu_training")


def asked(tmp_path, **changes):
    plain = Namespace(
        output=tmp_path, root=None, device="cpu", minutes=1.0, part=1.0, seeds=2, jobs=2, workers=0, tiny=True
    )
    return Namespace(**vars(plain) | changes)


@pytest.mark.slow
def test_every_part_of_the_gpu_run_is_a_command_that_exists(gpu, tmp_path):
    arguments = asked(tmp_path, tiny=False, device="cuda", root=tmp_path / "camvid")
    parts = gpu.measurements(arguments) + gpu.training_runs(arguments)
    assert len({part.name for part in parts}) == len(parts)
    assert len({str(part.receipt) for part in parts if part.receipt}) == sum(bool(part.receipt) for part in parts)
    runs = [part for part in parts if part.group]
    assert len(runs) == 2 * (5 + len(gpu.ABLATIONS))
    for part in runs:  # flags that the config has: else a lent machine would be the first to know
        config = Path(part.command[4])
        flags = list(part.command[5:])
        for own in ("--run", "--device"):
            place = flags.index(own)
            del flags[place : place + 2]
        changed = load_config(ROOT / config, flags)
        assert changed.precision == "bf16" and changed.seed in (0, 1)


@pytest.mark.slow
def test_parts_are_kept_stopped_and_gone_on_with(gpu, tmp_path):
    def part(name, code, **more):
        return gpu.Part(name, [sys.executable, "-c", code], **more)

    receipt = tmp_path / "metrics.json"
    write = f"open({str(receipt)!r}, 'w').write('{{\"miou\": 61.5}}')"
    parts = [
        part("quick", "print('ready')"),
        part("wrong", "raise SystemExit('no such thing')"),
        part("run, seed 0", write, receipt=receipt, group="run"),
        part("slow, seed 0", "import time; time.sleep(60)", group="slow"),
    ]
    state = gpu.State(tmp_path, "--device cpu")
    gpu.work(parts, state, asked(tmp_path, part=0.04))
    found = {name: entry["status"] for name, entry in state.parts.items()}
    assert found == {"quick": "done", "wrong": "failed", "run, seed 0": "done", "slow, seed 0": "stopped"}
    assert state.parts["wrong"]["said"] == "no such thing"
    again = gpu.State(tmp_path, "--device cpu")
    gpu.work(parts[:1], again, asked(tmp_path))
    assert again.parts["quick"] == state.parts["quick"]  # not run again
    table = (tmp_path / "results.md").read_text()
    assert "| quick | done |" in table and "| run | 61.50 | 1 seed | 1 | 61.50 |" in table


@pytest.mark.slow
def test_a_benchmark_that_was_stopped_does_not_keep_the_others_waiting(gpu, tmp_path, capsys):
    parts = [
        gpu.Part(name, [sys.executable, "-c", code], tmp_path / f"{name}.json")
        for name, code in (("slow", "import time; time.sleep(60)"), ("quick", "print('ready')"))
    ]
    state = gpu.State(tmp_path, "--device cpu")
    gpu.work(parts[:1], state, asked(tmp_path, part=0.02))
    assert state.parts["slow"]["status"] == "stopped"
    gpu.work(parts, state, asked(tmp_path, part=0.02))
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["slow", "quick", "slow"]


def test_the_gpu_run_refuses_what_it_cannot_use(tmp_path):
    def run(*flags):
        command = [sys.executable, str(ROOT / "tools" / "gpu_training.py"), "--output", str(tmp_path / "out"), *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    for flags, says in (
        (["--data.root", str(tmp_path)], "there is no CamVid"),
        (["--only", "camvid"], "--only names no part"),
        (["--minutes", "0"], "--minutes must be above 0"),
    ):
        done = run(*flags)
        assert done.returncode == 2 and says in done.stderr
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "results.json").write_text('{"kind": "--device cpu --tiny", "parts": {}}')
    refused = run("--list")
    assert refused.returncode == 2 and "holds results of --device cpu --tiny; choose another folder" in refused.stderr
    (tmp_path / "out" / "results.json").unlink()
    shown = run("--list").stdout
    assert "to do    training_step" in shown and "to do    tests" in shown

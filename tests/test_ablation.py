"""tools/ablation.py: what the table may say, which runs it makes, and the results that it writes."""

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "ablation.py"
TABLE = """
config = "lraspp_small_d8_camvid"
flags = ["--data.dataset", "folder", "--schedule.steps", "4"]
seeds = [0, 1]
folds.one = ["--data.root", "one"]
folds.two = ["--data.root", "two"]
changes = [
  { name = "baseline" },
  { name = "no jitter", flags = ["--data.jitter", "0"], folds = ["two"] },
  { name = "other", config = "my.py", seeds = [0] },
]
"""


@pytest.fixture
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def finish(trial, miou, steps=4):
    """What a finished run leaves."""
    folder = trial.run.folder
    folder.mkdir(parents=True)
    lines = [{"event": "eval", "step": 2, "miou": 99.0}, {"event": "eval", "step": steps, "miou": miou}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("report.html", "metrics.json"):
        (folder / name).write_text("{}")


def test_every_change_is_trained_on_every_fold_with_every_seed(ablation, tmp_path):
    file = tmp_path / "table.toml"
    file.write_text(TABLE)
    found = ablation.trials(ablation.read_table(file), tmp_path / "out")
    first = [(trial.change, trial.fold) for trial in found if trial.seed == 0]
    assert first == [("baseline", "one"), ("baseline", "two"), ("no jitter", "two"), ("other", "one"), ("other", "two")]
    assert [trial.name for trial in found[5:]] == ["baseline/one/seed 1", "baseline/two/seed 1", "no jitter/two/seed 1"]
    command = found[2].command[3:]
    assert command[:4] == ["train", "lraspp_small_d8_camvid", "--run", str(tmp_path / "out/runs/no_jitter/two_seed0")]
    assert command[-4:] == ["--data.root", "two", "--data.jitter", "0"]
    assert found[3].command[4] == "my.py" and len({str(trial.run.folder) for trial in found}) == len(found)


def test_the_last_score_counts_and_differences_are_of_the_same_folds_and_seeds(ablation, tmp_path):
    file = tmp_path / "table.toml"
    file.write_text(TABLE)
    found = ablation.trials(ablation.read_table(file), tmp_path / "out")
    for trial, miou in zip(found, (30.0, 40.0, 43.0, 31.0, 42.0, 32.0, 44.0), strict=False):  # one is not finished
        finish(trial, miou)
    costs = {trial.name: {"cpu_seconds": 90.0} for trial in found}
    ablation.write_results(found, costs, tmp_path)
    rows = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[1][:5] == ["| baseline", "31.00", "42.00", "36.50", ""] and rows[1][5] == "2.12"
    assert rows[2] == ["| no jitter", "", "43.00", "", "+3.00", "", "0", "4", "1.5 |"]
    assert rows[3] == ["| other", "31.00", "42.00", "36.50", "+1.50", "", "0", "4", "1.5 |"]
    lines = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert len(lines) == 7 and lines[0]["miou"] == "30.0" and lines[-1]["seed"] == "1"


def test_a_fold_with_more_seeds_counts_no_more_in_the_difference(ablation, tmp_path):
    def trial(change, fold, seed, miou):
        run = ablation.Run(tmp_path / change / f"{fold}{seed}")
        made = ablation.Trial(f"{change}{fold}{seed}", change, fold, seed, [], run)
        finish(made, miou)
        return made

    base = [trial("base", fold, seed, 30.0) for fold in "ab" for seed in (0, 1)]
    other = [trial("other", "a", 0, 31.0), trial("other", "b", 0, 33.0), trial("other", "b", 1, 35.0)]
    ablation.write_results([*base, *other], {}, tmp_path)
    assert "| other | 31.00 | 34.00 | 32.50 | +2.50 | 1.41 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "other"', 'name = "../other"', "cannot name folders"),
        ('name = "other"', 'name = "no_jitter"', "two changes have the same name"),
        ('folds = ["two"]', 'folds = ["three"]', "changes name folds that are not there: three"),
        ("seeds = [0, 1]", 'seeds = "0"', "seeds is text"),
        ("changes = [", "changes = [", "changes is missing"),
        ("folds.one = ", "folds.one == ", "table.toml: "),
    ],
)
def test_a_wrong_table_is_one_line(ablation, old, new, says, tmp_path):
    file = tmp_path / "table.toml"
    text = TABLE.replace(old, new)
    file.write_text(text.partition("changes")[0] if "missing" in says else text)
    with pytest.raises(ablation.ConfigError, match=says) as caught:
        ablation.read_table(file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tiny(folder, tmp_path):
    steps = ["--schedule.steps", "12", "--schedule.eval-every", "12", "--schedule.save-every", "1"]
    sizes = ["--data.crop-size", "32", "64", "--data.batch-size", "2", "--device", "cpu"]
    flags = ["--data.dataset", "folder", *steps, *sizes, "--schedule.warmup-steps", "1"]
    table = {"config": "lraspp_small_d8_camvid", "flags": flags, "seeds": [0]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    lines += [f'folds.here = ["--data.root", {json.dumps(str(folder))}]']
    lines += ['changes = [{ name = "baseline" }, { name = "no jitter", flags = ["--data.jitter", "0"] }]']
    file = tmp_path / "table.toml"
    file.write_text("\n".join(lines))
    return [sys.executable, str(SCRIPT), str(file), "--output", str(tmp_path / "out"), "--jobs", "2"]


@pytest.mark.slow
def test_a_stopped_table_goes_on_and_a_finished_one_is_kept(tiny, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(tiny, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(600):
        if len(list(out.glob("runs/*/*/log.jsonl"))) == 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode in (0, 1) and "runs are finished" in said
    spent = json.loads((out / "costs.json").read_text())

    done = subprocess.run(tiny, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "2 of 2 runs are finished" in done.stdout, done.stdout + done.stderr
    now = json.loads((out / "costs.json").read_text())
    assert all(now[name]["cpu_seconds"] > 1 for name in now) and set(now) >= set(spent)
    for folder in out.glob("runs/*/*"):
        steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [each["step"] for each in steps if each["event"] == "eval"] == [12]
    assert "| no jitter | " in (out / "table.md").read_text()

    again = subprocess.run(tiny, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and json.loads((out / "costs.json").read_text()) == now  # nothing ran
    file = tmp_path / "table.toml"
    file.write_text(file.read_text().replace('"--data.jitter", "0"', '"--data.jitter", "0.5"'))
    refused = subprocess.run(tiny, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "was made with other flags" in refused.stderr
    assert refused.stderr.count("\n") == 1

"""A table of changes, trained and scored: python tools/ablation.py TABLE.toml --output runs/drives

Every change is trained on every fold with every seed, --jobs runs side by side. The table:

    config = "configs/recipes/camvid_0006r0_best.py"     # what every run starts from
    flags = ["--schedule.steps", "600"]                   # of segmv3 train, for every run; seeds = [0, 1] may follow
    folds.0001TP = ["--data.root", "data/drives/0001TP"]  # the flags of each; its val part is scored
    changes = [{ name = "baseline" },                     # the others are compared with the first one
      { name = "jitter", flags = ["--data.photometric", "jitter"] }]  # also: config, seeds, folds (names)

The net of the last step is scored: no score chooses weights. The same command goes on after a stop. `runs.csv` and
`table.md` hold what is finished. --threads 1 and --data.workers 0 come first, so that the table's flags may say more.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from segmv3.errors import ConfigError, Segmv3Error
from segmv3.files import make_folder, write_bytes
from segmv3.records import read_json, read_regular, typed
from segmv3.training.run import Run


@dataclass(frozen=True)
class Change:
    """A row of the table. What is left out is the table's own."""

    name: str
    flags: list[str] = field(default_factory=list)
    config: str = ""
    seeds: list[int] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """What the file says."""

    config: str
    folds: dict[str, list[str]]
    changes: list[Change]
    flags: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass(frozen=True)
class Trial:
    """One training run."""

    name: str
    change: str
    fold: str
    seed: int
    command: list[str]
    run: Run

    def result(self) -> tuple[int, float] | None:
        """Steps and mIoU of the last net; None where the run is not finished."""
        scored = [each for each in self.run.log.entries() if each["event"] == "eval"] if self.run.finished() else []
        return (scored[-1]["step"], scored[-1]["miou"]) if scored else None


def read_table(path: Path) -> Table:
    """Raises: ConfigError: what is wrong with the file."""
    try:
        table = typed(tomllib.loads(read_regular(path).decode()), Table)
    except ValueError as error:  # of TOML too
        raise ConfigError(f"{path}: {error}") from None
    names = [change.name for change in table.changes]
    unknown = {fold for change in table.changes for fold in change.folds} - set(table.folds)
    bad = [name for name in (*names, *table.folds) if not re.fullmatch(r"\w[\w .,+-]*", name)]
    for wrong, text in (
        (not names or not table.folds, "needs a change and a fold at least"),
        (bad, f"{bad} cannot name folders; use letters, digits, spaces and -_.,+"),
        (len({name.replace(" ", "_") for name in names}) < len(names), "two changes have the same name"),
        (unknown, f"changes name folds that are not there: {', '.join(unknown)}"),
    ):
        if wrong:
            raise ConfigError(f"{path}: {text}")
    return table


def trials(table: Table, output: Path) -> list[Trial]:
    """Change by change; the second seeds come after all first ones."""
    found = []
    for change in table.changes:
        for seed, fold in product(change.seeds or table.seeds, change.folds or table.folds):
            folder = output / "runs" / change.name.replace(" ", "_") / f"{fold}_seed{seed}"
            own = ["--run", str(folder), "--seed", str(seed), "--threads", "1", "--data.workers", "0"]
            flags = [*own, *table.flags, *table.folds[fold], *change.flags]
            command = [sys.executable, "-m", "segmv3", "train", change.config or table.config, *flags]
            name = f"{change.name}/{fold}/seed {seed}"
            found.append(Trial(name, change.name, fold, seed, command, Run(folder)))
    return sorted(found, key=lambda trial: trial.seed)


def work(every: list[Trial], costs: dict[str, Any], output: Path, jobs: int) -> None:
    """Run what is not finished, `jobs` at a time. Ctrl-C stops them; each saves its state first."""
    running: set[subprocess.Popen[bytes]] = set()
    alone = threading.Lock()

    def train(trial: Trial) -> None:
        log = output / "logs" / f"{trial.name.replace('/', '_')}.txt"
        with log.open("ab") as stream:
            process = subprocess.Popen(trial.command, stdout=stream, stderr=stream, start_new_session=True)
            running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            running.discard(process)
            process.returncode = status
        said = log.read_text(errors="replace").strip().rpartition("\n")[2]
        with alone:
            spent = costs.get(trial.name, {}).get("cpu_seconds", 0) + usage.ru_utime + usage.ru_stime
            costs[trial.name] = {"cpu_seconds": round(spent, 1), "command": trial.command[3:]}
            write_bytes(output / "costs.json", json.dumps(costs, indent=1).encode())
            write_results(every, costs, output)
        result = trial.result()
        print(f"{trial.name}: {f'{result[1]:.2f} %' if result else said[-300:]}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(train, trial) for trial in every if not trial.result()]
        try:
            for each in waiting:
                each.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.send_signal(signal.SIGINT)


def write_results(every: list[Trial], costs: dict[str, Any], output: Path) -> None:
    """runs.csv: a line for each finished run. table.md: a row for each change, over its folds and seeds."""
    rows = [
        (each.change, each.fold, each.seed, *result, costs.get(each.name, {}).get("cpu_seconds", 0.0))
        for each in every
        if (result := each.result())
    ]
    with (output / "runs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("change", "fold", "seed", "steps", "miou", "cpu_seconds"), *rows])
    folds = list(dict.fromkeys(trial.fold for trial in every))
    head = ["change", *folds, "mean", "difference", "spread", "seeds", "steps", "CPU minutes a run"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    first = {row[1:3]: row[4] for row in rows if row[0] == every[0].change}
    for change in dict.fromkeys(row[0] for row in rows):
        mine = [row[1:] for row in rows if row[0] == change]
        scores = [[miou for own, _, _, miou, _ in mine if own == fold] for fold in folds]
        pairs = [[miou - first[own, s] for own, s, _, miou, _ in mine if own == f and (own, s) in first] for f in folds]
        apart = [mean(each) for each in pairs if each]
        spreads = [stdev(each) for each in scores if len(each) > 1]
        cells = [change, *(f"{mean(each):.2f}" if each else "" for each in scores)]
        cells += [f"{mean(map(mean, scores)):.2f}" if all(scores) else ""]
        cells += [f"{mean(apart):+.2f}" if apart and change != every[0].change else ""]
        cells += [f"{mean(spreads):.2f}" if spreads else ""]
        cells += [", ".join(map(str, sorted({row[column] for row in mine}))) for column in (1, 2)]
        lines.append(f"| {' | '.join(cells)} | {mean(row[4] for row in mine) / 60:.1f} |")
    lines += ["", "Difference: from the first row, of the same folds and seeds. Spread: deviation between the seeds."]
    (output / "table.md").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="TOML, as above")
    parser.add_argument("--output", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="runs side by side")
    arguments = parser.parse_args()
    output = arguments.output
    try:
        every = trials(read_table(arguments.table), output)
        costs = typed(read_json(known), dict) if (known := output / "costs.json").exists() else {}
        for each in every:
            if costs.get(each.name, {}).get("command", each.command[3:]) != each.command[3:]:
                raise ConfigError(f"{each.run.folder} was made with other flags; give the change another name")
        make_folder(output / "logs")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        work(every, costs, output, arguments.jobs)
        write_results(every, costs, output)
    except (Segmv3Error, ValueError) as error:
        print(error if isinstance(error, Segmv3Error) else f"{known} {error}; remove it", file=sys.stderr)
        return 2
    done = sum(trial.result() is not None for trial in every)
    print(f"{done} of {len(every)} runs are finished; see {output / 'table.md'}")
    return int(done < len(every))


if __name__ == "__main__":
    sys.exit(main())

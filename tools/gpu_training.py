"""All that segmv3 wants to know from a GPU: python tools/gpu_training.py --output gpu [--data.root data/camvid]

Parts, each in a process of its own: the tests that need a GPU; latency, peers and throughput of prediction; training
steps; the loader; and, where CamVid is, its recipes with several seeds and what each ingredient gives. A part gets at
most --part minutes, the whole call --minutes. The same command again goes on: finished parts are kept, training runs
continue where they were stopped. `results.json` and `results.md` in the output folder hold what there is so far.

Measured first, trained last; --only NAME ... chooses parts, --list names them. --device cpu --tiny tries the script.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPES = Path("configs/recipes")
_GRACE = 60
"""Seconds that a stopped part gets to save what it has."""

ABLATIONS: dict[str, list[str]] = {
    "no class weights": ["--loss.class-weights", "none"],
    "no moving average": ["--schedule.ema", "0"],
    "1/8 features only": ["--model.head.finest", "8"],
    "scales 0.75 to 1.5": ["--data.scale-range", "0.75", "1.5"],
    "no colours": ["--data.photometric", "jitter", "--data.jitter", "0"],
    "jitter": ["--data.photometric", "jitter"],
    "OHEM 0.7": ["--loss.ohem", "0.7", "--loss.min-kept", "0.0625"],
    "no auxiliary heads": ["--loss.auxiliary", "0"],
    "rate 2e-3": ["--optim.lr", "0.002"],
    "class-uniform": ["--data.class-uniform", "0.5"],
    "copy-paste": ["--data.copy-paste", "0.3"],
    "label smoothing": ["--loss.label-smoothing", "0.1"],
}
"""Of camvid_best: what is changed, one thing at a time."""


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes: receipt: the JSON file that a finished benchmark leaves; a run's metrics.json. group: of training runs
        whose scores are averaged.
    """

    name: str
    command: list[str]
    receipt: Path | None = None
    group: str = ""


def segmv3(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "segmv3", *map(str, arguments)]


def measurements(arguments: argparse.Namespace) -> list[Part]:
    """Tests and benchmarks."""
    output, tiny = arguments.output, arguments.tiny
    on = ["--device", arguments.device, *(["--force", "--repeat", "1"] if tiny else [])]
    size = ["--size", "64", "128"] if tiny else []
    halves = [] if tiny else ["--precision", "fp16", "bf16"]
    nets = ["--net", "lraspp_small_d8"] if tiny else ["--net", "lraspp_large_d8", "lraspp_large_d8_mmseg"]

    def benchmark(name: str, command: str, *flags: str) -> Part:
        receipt = output / f"{name}.json"
        where = on[2:] if command == "loader" else on  # the loader works on the CPU and takes no device
        return Part(name, segmv3("benchmark", command, *flags, *where, "--output", receipt, "--overwrite"), receipt)

    tests = [f"tests/test_{name}.py" for name in ("decode", "losses", "runtime", "benchmark_training")]
    batches = ["--batch", "1"] if tiny else ["--batch", "1", "16"]
    frames = ["--images", "1", "--frames", "2"] if tiny else []
    steps = [*size, "--batch", "2", "--no-memory"] if tiny else []
    loader = ["--crop", "64", "128", "--images", "1", "--workers", "0"] if tiny else ["--workers", "8"]
    mmseg = nets[:2] if tiny else ["--net", "lraspp_large_d8_mmseg"]
    return [
        Part("tests", [sys.executable, "-m", "pytest", "-k", "cuda or gpu", "-p", "no:cacheprovider", *tests]),
        benchmark("latency", "latency", *nets, *size, *halves, *(["--no-memory"] if tiny else [])),
        benchmark("peers", "peers", *size, "--no-memory"),
        benchmark("throughput", "throughput", *nets[:2], *size, *halves, *batches, *frames),
        benchmark("throughput_mmseg", "throughput", *mmseg, *size, *halves, *batches, *frames),
        benchmark("training_step", "training", "--recompute", "off", "on", *steps),
        benchmark("training_plus", "training", "--net", "lraspp_large_plus", "lraspp_small_plus", "--no-peers", *steps),
        benchmark("loader", "loader", *loader),
    ]


def training_runs(arguments: argparse.Namespace) -> list[Part]:
    """CamVid: packed once, then the recipes and the ablations, seed by seed, so that every stop leaves whole rows."""
    root, output = arguments.root, arguments.output
    if root is None:
        return []
    packed, held = output / "camvid-pack", output / "camvid-0006R0"
    parts = [
        Part("pack", segmv3("data", "pack", root, packed)),
        Part("holdout", [sys.executable, str(ROOT / "tools" / "camvid_holdout.py"), str(root), str(held)]),
        Part("pack_holdout", segmv3("data", "pack", held, output / "camvid-0006R0-pack")),
    ]
    speed = [] if arguments.device == "cpu" else ["--precision", "bf16", "--compile", "auto"]
    steps = ["--schedule.steps", "4", "--schedule.eval-every", "4", "--schedule.warmup-steps", "2"]
    steps = [*steps, "--data.crop-size", "64", "96", "--data.batch-size", "2"] if arguments.tiny else []

    def run(group: str, recipe: str, seed: int, flags: list[str], where: Path, cache: Path) -> Part:
        folder = output / "runs" / f"{group.replace(', ', '_').replace(' ', '_').replace('/', '-')}_seed{seed}"
        data = ["--data.root", str(where), "--data.cache", str(cache), "--data.workers", str(arguments.workers)]
        what = ["--run", str(folder), "--seed", str(seed), "--device", arguments.device]
        command = segmv3("train", RECIPES / f"{recipe}.py", *what, *data, *speed, *steps, *flags)
        return Part(f"{group}, seed {seed}", command, folder / "metrics.json", group)

    for seed in range(arguments.seeds):
        parts += [run(r, r, seed, [], root, packed) for r in ("camvid_plain", "camvid_best", "camvid_large")]
        honest = ("camvid_0006r0_plain", "camvid_0006r0_best")
        parts += [run(r, r, seed, [], held, output / "camvid-0006R0-pack") for r in honest]
        parts += [
            run(f"camvid_best, {name}", "camvid_best", seed, flags, root, packed) for name, flags in ABLATIONS.items()
        ]
    return parts


# --- running them ---


class State:
    """What became of each part, kept in results.json.

    Attributes: kind: the flags that results of one folder share; others are refused.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.file = folder, folder / "results.json"
        known = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.kind: str = known.get("kind", kind)
        self.parts: dict[str, dict[str, Any]] = known.get("parts", {})

    def done(self, part: Part) -> bool:
        return self.parts.get(part.name, {}).get("status") == "done"

    def stopped(self, part: Part) -> bool:
        return self.parts.get(part.name, {}).get("status") == "stopped"

    def note(self, part: Part, code: int, stopped: bool, seconds: float, tail: str) -> str:
        status = "done" if code == 0 else "stopped" if stopped else "failed"
        spent = self.parts.get(part.name, {}).get("seconds", 0) + seconds
        self.parts[part.name] = {"status": status, "exit": code, "seconds": round(spent, 1), "said": tail}
        if part.receipt and part.receipt.is_file():
            self.parts[part.name] |= {
                "receipt": str(part.receipt.relative_to(self.folder)),  # the folder may be moved between machines
                "group": part.group,
            }
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"kind": self.kind, "parts": self.parts}, indent=1))
        temporary.replace(self.file)
        return status


@dataclass
class Running:
    part: Part
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    stopped: bool = False


def work(parts: list[Part], state: State, arguments: argparse.Namespace) -> None:
    """Run what is not done yet, measurements one by one, training runs `--jobs` at a time, until the time is up."""
    end = time.monotonic() + 60 * arguments.minutes
    todo = [part for part in parts if not state.done(part)]
    # a benchmark that was stopped starts again from nothing: last, or it would keep the rest waiting in every call
    waiting = deque(sorted(todo, key=lambda part: bool(part.receipt) and not part.group and state.stopped(part)))
    running: list[Running] = []
    while waiting or running:
        most = arguments.jobs if waiting and waiting[0].group and all(r.part.group for r in running) else 1
        if waiting and len(running) < most and time.monotonic() < end - _GRACE / 2:
            running.append(_start(waiting.popleft(), arguments.output))
            continue
        if not running:
            break  # no time is left for what waits
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:
            end = time.monotonic()
        now = time.monotonic()
        for each in list(running):
            late = now - min(each.began + 60 * arguments.part, end)
            if late > _GRACE:
                each.process.kill()
            elif late > 0 and not each.stopped:
                each.process.send_signal(signal.SIGINT)  # training saves its state, benchmarks what they timed
                each.stopped = True
            if (code := each.process.poll()) is not None:
                running.remove(each)
                status = state.note(each.part, code, each.stopped, now - each.began, _tail(each.log))
                print(f"{each.part.name}: {status}, {now - each.began:.0f} s", flush=True)
                write_table(state)


def _start(part: Part, output: Path) -> Running:
    log = output / "logs" / f"{part.name.replace(' ', '_').replace('/', '-').replace(',', '')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C would come twice, and the second one saves nothing
        )
    return Running(part, process, log, time.monotonic())


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[-300:] if lines else ""


# --- the table ---


def write_table(state: State) -> None:
    """results.md: the training steps, the scores, and what became of every part."""
    lines = ["# segmv3 on a GPU", "", *_machine(state), *_steps(state), *_scores(state), "## Parts", ""]
    lines += ["| part | status | seconds | last line |", "|---|---|---|---|"]
    for name, part in state.parts.items():
        said = part["said"].replace("|", "\\|")
        lines.append(f"| {name} | {part['status']} | {part['seconds']:.0f} | {said} |")
    (state.folder / "results.md").write_text("\n".join(lines) + "\n")


def _receipts(state: State, *, group: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(part, the content of its receipt) of benchmarks, or of training runs."""
    chosen = [part for part in state.parts.values() if "receipt" in part and bool(part["group"]) == group]
    return [(part, json.loads((state.folder / part["receipt"]).read_text())) for part in chosen]


def _machine(state: State) -> list[str]:
    for _, receipt in _receipts(state, group=False):
        machine = receipt["machine"]
        return [f"{machine['gpu'] or machine['cpu']}, torch {machine['packages']['torch']}, {machine['segmv3']}", ""]
    return []


def _steps(state: State) -> list[str]:
    receipts = [each for _, each in _receipts(state, group=False) if each["benchmark"] == "training"]
    rows = [row for each in receipts for row in each.get("rows", ())]
    if not rows:
        return []
    titles = "| implementation | size | batch | median ms | p95 ms | images/s | times plain | peak MiB | hours, 320k |"
    lines = ["## Training steps", "", titles, "|---" * 9 + "|"]
    for row in rows:
        where = f"{row['name']} | {row['size'][0]}x{row['size'][1]} | {row['batch']}"
        if "median_ms" not in row:
            lines.append(f"| {where} | {row['reason']} | | | | | |")
            continue
        times = f"{row['median_ms']:.1f} | {row['p95_ms']:.1f} | {row['images_per_second']:.1f}"
        rest = f"{row.get('times_plain', '')} | {row['memory_mib'] or ''} | {row['hours_for_320000_steps']}"
        lines.append(f"| {where} | {times} | {rest} |")
    return [*lines, ""]


def _scores(state: State) -> list[str]:
    """mIoU of the finished runs, by recipe, over the seeds."""
    groups: dict[str, list[float]] = {}
    for part, metrics in _receipts(state, group=True):
        if part["status"] == "done":
            groups.setdefault(part["group"], []).append(metrics["miou"])
    if not groups:
        return []
    lines = ["## CamVid, mIoU on val of the data set that each was trained on", "", "Best of about 20 evaluations.", ""]
    lines += ["| recipe | mean | standard deviation | seeds | each |", "|---|---|---|---|---|"]
    for group, scores in groups.items():
        spread = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else "1 seed"
        each = ", ".join(f"{score:.2f}" for score in scores)
        lines.append(f"| {group} | {statistics.mean(scores):.2f} | {spread} | {len(scores)} | {each} |")
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="folder of the results")
    parser.add_argument("--data.root", dest="root", type=Path, help="CamVid; without it nothing is trained")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.5, help="for this call")
    parser.add_argument("--part", type=float, default=8, help="most minutes for one part of it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time; small nets leave a GPU idle")
    parser.add_argument("--workers", type=int, default=4, help="data workers of each training run")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts whose names begin so")
    parser.add_argument("--list", action="store_true", help="name the parts and what became of them, and stop")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes and runs, to try the script")
    arguments = parser.parse_args()
    for flag in ("minutes", "part", "seeds", "jobs"):
        if not getattr(arguments, flag) > 0:
            parser.error(f"--{flag} must be above 0")
    if arguments.root and not (arguments.root / "train" / "images").is_dir():
        parser.error(f"--data.root: there is no CamVid in {arguments.root}; data/README.md has its layout")
    arguments.output = arguments.output.resolve()
    arguments.root = arguments.root and arguments.root.resolve()
    parts = measurements(arguments) + training_runs(arguments)
    if arguments.only:
        parts = [part for part in parts if part.name.startswith(tuple(arguments.only))]
    if not parts:
        parser.error("--only names no part; --list shows them (training needs --data.root)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    kind = f"--device {arguments.device}{' --tiny' if arguments.tiny else ''}"
    state = State(arguments.output, kind)
    if state.kind != kind:  # a trial's figures would stand among the GPU's
        parser.error(f"--output: {arguments.output} holds results of {state.kind}; choose another folder for {kind}")
    if arguments.list:
        for part in parts:
            print(f"{state.parts.get(part.name, {}).get('status', 'to do'):<8} {part.name}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: stop what runs, note it, leave
    work(parts, state, arguments)
    left = [part for part in parts if not state.done(part)]
    broken = [part.name for part in left if state.parts.get(part.name, {}).get("status") == "failed"]
    print(f"{len(parts) - len(left)} of {len(parts)} parts done; see {arguments.output / 'results.md'}")
    if broken:
        print(f"failed: {'; '.join(broken)}")
    elif left:
        print("the same command goes on")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

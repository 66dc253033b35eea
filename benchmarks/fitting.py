"""What a fit is held against: the unchanged net, and the net scaled evenly to the same latency, fine-tuned as long.

Run:  python benchmarks/fitting.py unchanged|uniform CONFIG WEIGHTS --budget-ms 2.5 --size 256 512 --steps 120 \\
          --table FIT/latency.json --run DIR

The evenly scaled net keeps the channels with the largest filters, as a fit does, and has one factor for all layers: the
largest at which the table of latencies says that it meets the budget. It prints one line of JSON.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from segmv3 import checkpoint
from segmv3.config import load_config
from segmv3.fitting.cut import cut
from segmv3.fitting.latency import Meter, Table
from segmv3.fitting.run import stored_table
from segmv3.fitting.settings import Fitting
from segmv3.models.layers import multiple_of_8
from segmv3.training.experiment import Experiment
from segmv3.training.loop import train
from segmv3.weights.opening import open_net


def scaled(meter: Meter, table: Table, budget: float) -> tuple[int, ...]:
    """The widths of the widest evenly scaled net within a budget."""
    for percent in range(100, 24, -1):
        widths = meter.full
        for group in meter.groups:
            width = group.width(meter.full)
            widths = group.narrowed(widths, min(width, multiple_of_8(width * percent / 100)))
        if table.predict(widths) <= budget:
            print(f"factor {percent / 100}, {table.predict(widths):.2f} ms by the table", flush=True)
            return widths
    raise SystemExit("no factor meets the budget")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("kind", "config", "weights"):
        parser.add_argument(name)
    parser.add_argument("--budget-ms", type=float, required=True)
    parser.add_argument("--size", type=int, nargs=2, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="latency.json of the fit")
    parser.add_argument("--runtime", default="openvino")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, card = open_net(options.weights)
    settings = Fitting(budget_ms=options.budget_ms, long_steps=options.steps)
    meter = Meter(model, tuple(options.size), options.runtime, 1, settings.least_share)
    net = model
    if options.kind == "uniform":
        net = cut(model, scaled(meter, stored_table(options.table, meter), options.budget_ms))
    start = options.run.with_suffix(".safetensors")
    checkpoint.save(net, start, classes=card.classes)
    config = settings.long(load_config(options.config, kind=Experiment), net.config, start)  # type: ignore[type-abstract]
    trained = train(config, options.run, threads=1, quiet=True)
    times = meter.compare([model, open_net(trained.weights)[0]])
    before, after = (statistics.median(each) for each in times)
    print(json.dumps({"kind": options.kind, "score": trained.score, "ms_before": before, "ms": after}))


if __name__ == "__main__":
    main()

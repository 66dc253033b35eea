"""Scoring a net during its training, and keeping it when it is the best so far."""

import time
from collections.abc import Callable
from typing import Any

from segmv3 import checkpoint
from segmv3.data.loader import shard
from segmv3.files import write_json
from segmv3.settings import to_dict
from segmv3.training.average import same_on_all_processes
from segmv3.training.journal import Journal
from segmv3.training.processes import Setup, device_name, everywhere
from segmv3.training.state import State
from segmv3.training.task import Net, Task


def evaluate(state: State, setup: Setup, journal: Journal, on_image: Callable[[], None]) -> float:
    """Score the net in fp32 on unpadded shards; keep it when it is the best so far.

    Args:
        state: the net, and its earlier scores.
        setup: what it is scored on.
        journal: where the scores are written.
        on_image: called after each image; what it raises ends the evaluation.

    Returns:
        The score that counts, percent.
    """
    began, fabric, task, net = time.monotonic(), setup.fabric, setup.task, state.scored
    metric = task.metric
    net.eval()
    if fabric.world_size > 1:
        same_on_all_processes(net)  # score what is saved
    with setup.console.task("evaluate") as progress:

        def scored(done: int, total: int) -> None:
            progress(done, total)
            on_image()

        mine = shard(len(task.val_set), fabric.global_rank, fabric.world_size)
        counts = task.count(net, fabric.device, mine, scored)
    result = task.scores(everywhere(fabric, counts).cpu())
    seconds = round(time.monotonic() - began, 3)
    entry = {"event": "eval", "step": state.step, **{key: result[key] for key in metric.logged}, "seconds": seconds}
    improved = all(result[metric.key] > before[metric.key] for before in state.evaluations)
    state.evaluations.append(entry)
    if fabric.is_global_zero and (improved or not setup.run.best.is_file()):
        _keep(net, result, state, setup)
    journal.write_scores(entry, result, lambda: task.panel(net, fabric.device))
    setup.console.say(
        f"step {state.step:,}/{setup.config.schedule.steps:,}  {metric.name} {result[metric.key]:.2f} % on "
        f"{result['images']:,} images of {result['split']}{_without(result)}{' (best so far)' if improved else ''}"
    )
    return result[metric.key]


def _keep(net: Net, result: dict[str, Any], state: State, setup: Setup) -> None:
    facts = {"step": state.step, "net": setup.task.net_name, "config": to_dict(setup.config)}
    if state.origin:
        facts["pretrained"] = state.origin
    score = {key: result[key] for key in setup.task.metric.recorded}
    checkpoint.save(net, setup.run.best, classes=setup.task.classes, score=score, **facts)
    result = facts | {"device": device_name(setup.fabric.device), "seconds": round(state.seconds)} | result
    write_json(setup.run.metrics_file, result, indent=2)


def headline(task: Task, result: dict[str, Any]) -> str:
    """The best score of a run in a few words."""
    score = f"{result[task.metric.key]:.2f} % {task.metric.name}"
    return f"{score} on {result['split']}{_without(result)} at step {result['step']:,}"


def _without(result: dict[str, Any]) -> str:
    """` without road, sky (absent)`, where a mean leaves classes out."""
    absent = result.get("absent") or []
    return f" without {', '.join(absent)} (absent)" if absent else ""

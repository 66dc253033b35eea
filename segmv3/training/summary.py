"""What every report of a run tells beside the scores."""

import math
from typing import Any

from segmv3.checkpoint import Card

_SAMPLES = 4


def evenly_spaced(count: int) -> range:
    """Up to four images out of so many, not the prettiest."""
    return range(0, count, max(1, math.ceil(count / _SAMPLES)))


def facts_of(metrics: dict[str, Any], size: int, card: Card, log: list[dict[str, Any]]) -> dict[str, str]:
    """The facts about a run, by their names.

    Args:
        metrics: the content of metrics.json.
        size: parameters of the net.
        card: of the best weights.
        log: the entries of the run's log.
    """
    config = metrics["config"]
    early = f"; stopped early at step {log[-1]['step']:,}" if log and log[-1]["event"] == "stop" else ""
    return {
        "net": f"{metrics['net']}, {size:,} parameters",
        "data": f"{metrics['dataset']}, scored on {metrics['images']:,} images of {metrics['split']}",
        "best at": f"step {metrics['step']:,} of {config['schedule']['steps']:,}{early}",
        "training": f"batch {config['data']['batch_size']}, crop {' x '.join(map(str, config['data']['crop_size']))}, "
        f"{config['precision']}, seed {config['seed']}",
        "device": metrics["device"],
        "time": f"{metrics['seconds'] / 60:.1f} min to the best step",
        "segmv3": " ".join(filter(None, (card.facts["version"], card.facts["commit"]))),
        "weights SHA-256": card.sha256,
    }

"""The page of a finished run: its best weights shown on validation images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmv3.data.datasets import Dataset
from segmv3.models.count import parameters
from segmv3.report import Sample, write_report
from segmv3.runtime import Predictor

_SAMPLES = 4


def write_summary(
    folder: Path,
    predict: Predictor,
    dataset: Dataset,
    log: list[dict[str, Any]],
    metrics: dict[str, Any],
    progress: Callable[[int, int], None],
) -> Path:
    """Write `report.html` and its pictures into a run folder, from what the run left there.

    Args: predict: the best weights. dataset: the validation split. log: the entries of log.jsonl.
        metrics: the content of metrics.json.
    """
    samples = []
    spread = max(1, math.ceil(len(dataset) / _SAMPLES))  # evenly spaced images, not the prettiest
    chosen = range(0, len(dataset), spread)
    for number, index in enumerate(chosen, 1):
        image, truth = dataset.read(index)
        samples.append(Sample(dataset.pairs[index].name, image, truth, predict(image)))
        progress(number, len(chosen))
    config = metrics["config"]
    facts = {
        "net": f"{metrics['net']}, {parameters(predict.model):,} parameters",
        "data": f"{dataset.title}, scored on {metrics['images']} images of {dataset.split}",
        "best at": f"step {metrics['step']:,} of {config['schedule']['steps']:,}",
        "training": f"batch {config['data']['batch_size']}, crop {' x '.join(map(str, config['data']['crop_size']))}, "
        f"{config['precision']}, seed {config['seed']}",
        "device": metrics["device"],
        "time": f"{metrics['seconds'] / 60:.1f} min to the best step",
        "segmv3": " ".join(filter(None, (predict.card.facts["version"], predict.card.facts["commit"]))),
        "weights SHA-256": predict.card.sha256,
    }
    title = f"{metrics['net']} on {dataset.title}"
    return write_report(
        folder, title=title, facts=facts, log=log, scores=metrics, classes=dataset.classes, samples=samples
    )

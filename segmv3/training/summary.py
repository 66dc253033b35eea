"""The page of a finished run: its scores, and what its best weights make of validation images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmv3.checkpoint import Card
from segmv3.data.datasets import Dataset
from segmv3.models.classifier import ImageClassifier
from segmv3.models.count import parameters
from segmv3.report import Sample, write_classification_report, write_report
from segmv3.runtime import Predictor

_SAMPLES = 4


def write_summary(
    folder: Path,
    predict: Predictor,
    size: int,
    dataset: Dataset,
    log: list[dict[str, Any]],
    metrics: dict[str, Any],
    progress: Callable[[int, int], None],
) -> Path:
    """Write `report.html` and its pictures into the folder of a segmentation run, from what the run left there.

    Args: predict: the best weights. size: parameters of their net. dataset: the validation split. log: the entries of
        log.jsonl. metrics: the content of metrics.json.
    """
    samples = []
    chosen = evenly_spaced(len(dataset))
    for number, index in enumerate(chosen, 1):
        image, truth = dataset.read(index)
        samples.append(Sample(dataset.pairs[index].name, image, truth, predict(image)))
        progress(number, len(chosen))
    return write_report(
        folder,
        title=f"{metrics['net']} on {dataset.title}",
        facts=_facts(metrics, size, predict.card),
        log=log,
        scores=metrics,
        classes=dataset.classes,
        samples=samples,
    )


def evenly_spaced(count: int) -> range:
    """Up to four images out of so many, not the prettiest."""
    return range(0, count, max(1, math.ceil(count / _SAMPLES)))


def write_classification_summary(
    folder: Path, model: ImageClassifier, card: Card, log: list[dict[str, Any]], metrics: dict[str, Any]
) -> Path:
    """Write `report.html` into the folder of a classification run, from what the run left there.

    Args: model, card: the best weights. log, metrics: as for `write_summary`.
    """
    title = f"{metrics['net']} on {metrics['dataset']}"
    facts = _facts(metrics, parameters(model), card)
    return write_classification_report(folder, title=title, facts=facts, log=log, scores=metrics)


def _facts(metrics: dict[str, Any], size: int, card: Card) -> dict[str, str]:
    config = metrics["config"]
    return {
        "net": f"{metrics['net']}, {size:,} parameters",
        "data": f"{metrics['dataset']}, scored on {metrics['images']:,} images of {metrics['split']}",
        "best at": f"step {metrics['step']:,} of {config['schedule']['steps']:,}",
        "training": f"batch {config['data']['batch_size']}, crop {' x '.join(map(str, config['data']['crop_size']))}, "
        f"{config['precision']}, seed {config['seed']}",
        "device": metrics["device"],
        "time": f"{metrics['seconds'] / 60:.1f} min to the best step",
        "segmv3": " ".join(filter(None, (card.facts["version"], card.facts["commit"]))),
        "weights SHA-256": card.sha256,
    }

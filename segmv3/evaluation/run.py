"""Scoring weights on a split: what `segmv3 evaluate` does, as a function."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from segmv3 import checkpoint, official
from segmv3.config import Config, Data, Device, Precision
from segmv3.convert.receipt import files_of
from segmv3.data.check import class_remark
from segmv3.data.datasets import Dataset
from segmv3.data.loader import shard
from segmv3.errors import ConfigError, DataError, ModelError, Segmv3Warning
from segmv3.evaluation import counting, labelling
from segmv3.evaluation.counting import ImageCounts, Keep
from segmv3.evaluation.labelling import ConfidentFunction, LabelsFunction, Net
from segmv3.evaluation.processes import ALONE, Processes, processes
from segmv3.evaluation.scores import scores_of_images
from segmv3.evaluation.settings import Settings, Size
from segmv3.images import UInt8Array
from segmv3.results.result import Export, Result
from segmv3.results.uncertainty import FEWEST_IMAGES, bootstrap_miou
from segmv3.runtime import Predictor
from segmv3.runtime.loading import is_export, load
from segmv3.weights.opening import open_segmenter

if TYPE_CHECKING:
    from segmv3.report.samples import Sample

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def evaluate(
    data: Config | Data,
    weights: Path | str,
    *,
    split: str = "val",
    limit: int | None = None,
    multi_scale_flip: bool = False,
    sliding_window: Size | None = None,
    stride: Size | None = None,
    size: Size | None = None,
    scale: float | None = None,
    official: bool = False,
    boundary: bool = False,
    calibration: bool = False,
    precision: Precision | None = None,
    device: Device = "auto",
    threads: int | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Score weights on a split, at the size of its ground truth; torchrun's processes share the images.

    Args:
        data: a data set, or a config whose net the weights must hold.
        weights: weight file, published name, or a file that `segmv3 export` wrote.
        split: part of the data set.
        limit: score only the first images.
        multi_scale_flip: average six scales and their mirror images, as in the mmsegmentation table.
        sliding_window: run the net on overlapping windows of this height and width, and average their logits.
        stride: rows and columns between windows; two thirds of the window by default.
        size: show the net every image at this height and width; its logits are enlarged to the ground truth.
        scale: show the net every image at this share of its height and width.
        official: also run the Cityscapes script, and raise an error when it disagrees.
        boundary: also measure boundary IoU and boundary F-score.
        calibration: also measure whether the net is right as often as it is sure.
        precision: arithmetic of the net; fp32 by default, and an export's own.
        device: where to run; "auto" takes a GPU when there is one.
        threads: CPU threads; torch's own choice by default.
        trust: open an exported file that can do harm, as for `segmv3.load`.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        The scores, with all that they depend on.

    Raises:
        Segmv3Error: data, weights or settings that cannot be used, and scores that cannot be trusted.
    """
    named = locals()
    settings = Settings(**{field.name: named[field.name] for field in fields(Settings)})
    with processes(weights, device, threads) as group:
        evaluation = group.agree(partial(open_evaluation, data, weights, settings, group.device, trust))
        if remark := group.first(evaluation.remark):
            warnings.warn(Segmv3Warning(remark), stacklevel=2)
        return evaluation.run(group, progress)


@dataclass(frozen=True)
class Evaluation:
    """A net and a split that are ready for scoring."""

    dataset: Dataset
    settings: Settings
    labels_of: LabelsFunction | ConfidentFunction
    device: torch.device
    precision: Precision
    """Precision of torch's autocast; an export has its own."""
    root: Path
    """Folder of the data set."""
    facts: dict[str, Any]
    """Fields of `Result`: which net it is, and what runs it."""

    @property
    def count(self) -> int:
        """Images to score."""
        return min(self.settings.limit or len(self.dataset), len(self.dataset))

    def remark(self) -> str:
        """What a user should know of the classes of the split before its first image is scored; empty for nothing.

        Raises:
            DataError: nothing of it can be scored.
        """
        text = "" if self.settings.limit else class_remark(self.dataset, self.root)
        return text and f"data: '{self.settings.split}': {text}"

    def run(self, group: Processes = ALONE, progress: Progress | None = None) -> Result:
        """Score this process's share of the images and add up what all processes counted.

        Args:
            group: the processes that score together.
            progress: as for `evaluate`.

        Returns:
            The same result on every process.

        Raises:
            DataError: a file that cannot be scored.
            EvaluationError: the processes did not count every image once.
            OfficialError: the Cityscapes script finds other scores.
        """
        tell = progress or (lambda what, done, total: None)
        writes = self.settings.official and group.rank == 0
        with TemporaryDirectory(prefix="segmv3-official-") if writes else nullcontext() as own:
            folder = group.share(Path(own) if own else None)[0]
            shares = group.share(group.agree(lambda: self._share(group, folder, tell)))
            found = group.share(group.first(lambda: self._result(shares, folder, tell)))[0]
        assert found
        return found

    def samples(self, names: Sequence[str], progress: Progress | None = None) -> Iterator["Sample"]:
        """Run the net over some images again, for pictures of them.

        Args:
            names: of the images, in the wanted order.
            progress: as for `evaluate`.
        """
        from segmv3.report.samples import Sample

        places = {pair.name: place for place, pair in enumerate(self.dataset.pairs)}
        kept: list[Sample] = []
        counts = self._counts([places[name] for name in names], lambda *each: kept.append(Sample(*each)))
        for done, _ in enumerate(counts, 1):
            yield kept.pop()
            if progress:
                progress("draw the page", done, len(names))

    def _counts(self, indices: Sequence[int], keep: Keep, **also: bool) -> Iterator[ImageCounts]:
        return counting.count_images(
            self.labels_of,
            self.dataset,
            device=self.device,
            precision=self.precision,
            indices=indices,
            keep=keep,
            **also,
        )

    def _share(self, group: Processes, folder: Path | None, progress: Progress) -> list[ImageCounts]:
        """The counts of the images that are this process's."""
        mine = shard(self.count, group.rank, group.count)

        def keep(name: str, *pixels: UInt8Array) -> None:
            if folder:
                official.write_prediction(folder, name, pixels[-1])

        instances = counting.has_instances(self.dataset)
        counts = self._counts(mine, keep, boundary=self.settings.boundary, instances=instances)
        images: list[ImageCounts] = []
        for image in counts:
            images.append(image)
            progress(f"evaluate {self.settings.split}", len(images), len(mine))
        return images

    def _result(self, shares: Sequence[Sequence[ImageCounts]], folder: Path | None, progress: Progress) -> Result:
        settings = self.settings
        images = counting.merge(shares, self.dataset, self.count)
        if not any(image.confusion for image in images):
            raise DataError(f"no pixel of '{settings.split}' is labelled: there is nothing to score")
        result = scores_of_images(images, self.dataset, multi_scale_flip=settings.multi_scale_flip)
        if settings.sliding_window:
            window, stride = settings.window()
            result = replace(result, sliding_window=window, stride=stride)
        if resized := settings.input_size():
            sizes = {resized(image.size) for image in images}
            shown = sizes.pop() if len(sizes) == 1 else None
            result = replace(result, input_size=shown, input_scale=settings.scale)
        if folder:
            result = replace(result, official=self._official(result, folder, progress))
        if len(images) >= FEWEST_IMAGES:
            result = replace(result, miou_interval=bootstrap_miou(result.counts))
        return replace(result, **self.facts, processes=len(shares), segmv3=checkpoint.package_version())

    def _official(self, result: Result, folder: Path, progress: Progress) -> dict[str, Any]:
        """What the Cityscapes script says of the predictions in a folder."""
        predictions = [official.prediction_file(folder, name) for name in result.names]
        missing = next((path for path in predictions if not path.is_file()), None)
        if missing:
            raise DataError(f"{missing} was written on another machine; --official needs all processes on one")
        truths = [pair.label for pair in self.dataset.pairs[: len(predictions)]]
        said = official.script_scores(predictions, truths, partial(progress, "Cityscapes script"))
        return official.agreement(said, result.to_dict())


def open_evaluation(
    data: Config | Data,
    weights: Path | str,
    settings: Settings,
    device: torch.device,
    trust: bool = False,
) -> Evaluation:
    """Open a split and a net, and look at everything that can be wrong before the first image.

    Args:
        data: as for `evaluate`.
        weights: as for `evaluate`.
        settings: how to score.
        device: where to run.
        trust: as for `evaluate`.

    Raises:
        Segmv3Error: settings that exclude each other; data or weights that cannot be used or do not fit.
    """
    settings.refuse_contradictions()
    model, data = (data.model, data.data) if isinstance(data, Config) else (None, data)
    dataset = counting.open_labelled(data, settings.split)
    path = Path(weights)
    if path.is_dir() or is_export(path):
        kind: Device = "cuda" if device.type == "cuda" else "cpu"
        predict = load(path, device=kind, precision=settings.precision or "auto", trust=trust)
        checkpoint.check_classes(predict.card, dataset.classes, path)
        _refuse_export(path, predict, settings, dataset)
        net: Net = predict
        facts = {
            "weights_sha256": predict.card.sha256,
            "origin": predict.card.facts.get("origin"),
            "precision": predict.precision,
            "runtime": predict.backend,
        }
        if not path.is_dir():
            digest = hashlib.sha256(b"".join(file.read_bytes() for file in files_of(path)))
            export = Export(output=predict.output, size=predict.size, source_sha256=predict.card.sha256)
            facts |= {"weights_sha256": digest.hexdigest(), "export": export}
        labels_of = predict.labels_of if predict.output == "labels" else _labels_of(predict, settings)
        precision: Precision = "fp32"
    else:
        net, card = open_segmenter(weights)
        card = checkpoint.in_order(card, net, dataset.classes, path)
        checkpoint.check_net(card, net, model or net.config, dataset.classes, path)
        precision = settings.precision or "fp32"
        facts = {"weights_sha256": card.sha256, "origin": card.facts.get("origin"), "precision": precision}
        labels_of = _labels_of(net.to(device), settings)
    if settings.official:
        if not counting.is_cityscapes(dataset):
            raise ConfigError(f"--official is for data in Cityscapes layout, and {dataset.title} is not; leave it out")
        official.refuse_unscorable([pair.label for pair in dataset.pairs])
    facts |= {"weights": str(weights), "device": device.type}
    return Evaluation(dataset, settings, labels_of, device, precision, data.root, facts)


def _labels_of(net: Net, settings: Settings) -> LabelsFunction | ConfidentFunction:
    """The net in the way that the settings ask for."""
    if settings.sliding_window:
        return labelling.sliding(net, *settings.window())
    if settings.calibration:
        return labelling.confident(net, settings.input_size())
    return (labelling.multi_scale if settings.multi_scale_flip else labelling.single_scale)(net, settings.input_size())


def _refuse_export(path: Path, predict: Predictor, settings: Settings, dataset: Dataset) -> None:
    """Raises: ModelError for a file that does not give what the settings need, or takes images of another size."""
    logits = ("multi_scale_flip", "sliding_window", "calibration", "size", "scale")
    needs = next((f"--{name.replace('_', '-')}" for name in logits if getattr(settings, name)), "")
    if predict.output == "labels" and needs:
        raise ModelError(f"{path} gives labels alone, and {needs} needs logits; export with --output-kind low-logits")
    if not predict.size:
        return
    only = f"{path} takes images of {predict.size[0]}x{predict.size[1]} (height x width) only"
    if settings.multi_scale_flip:
        raise ModelError(f"{only}, and --multi-scale-flip shows it six sizes; export it without --size")
    resized, (height, width) = settings.input_size(), dataset.read(0)[0].shape[:2]
    shown = settings.sliding_window or (resized((height, width)) if resized else (height, width))
    if tuple(shown) != predict.size:
        height, width = predict.size
        raise ModelError(f"{only}, not of {shown[0]}x{shown[1]}; score it with --size {height} {width}")

"""Segmentation as a task of the training loop: every pixel gets a class, scored at the size of the ground truth."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from segmv3.checkpoint import load
from segmv3.config import Config
from segmv3.data.check import Problem, class_remark, contents, problems_in, refuse
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.facts import read_pairs
from segmv3.data.loader import TrainSamples
from segmv3.data.packed import open_training
from segmv3.data.sampling import draws_of
from segmv3.errors import ConfigError, DataError, Segmv3Warning
from segmv3.evaluation.counting import confusion_matrix
from segmv3.evaluation.labelling import single_scale
from segmv3.evaluation.scores import scores
from segmv3.images import UInt8Array
from segmv3.media.draw import overlay
from segmv3.metrics import ConfusionMatrix
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_model, net_name
from segmv3.report import Sample, write_report
from segmv3.runtime import Predictor
from segmv3.runtime.backends import TorchBackend
from segmv3.settings import refuse as refuse_settings
from segmv3.training.manifest import read_manifest
from segmv3.training.run import Run
from segmv3.training.summary import evenly_spaced, facts_of
from segmv3.training.task import Metric, OpenProgress, Progress, Task
from segmv3.training.teacher import WithProjection, open_features, open_teacher

_PANEL_WIDTH = 1536  # of image, truth and prediction side by side


class SegmentationTask(Task):
    """Every pixel gets a class; scored by mIoU."""

    metric = Metric(
        "miou",
        "mIoU",
        logged=("miou", "mean_accuracy", "pixel_accuracy"),
        recorded=("dataset", "split", "images", "scales", "flip", "miou"),
    )
    entry = "low_logits"
    counted_at = (1024, 2048)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.net_name = net_name(config.model)
        self.train_set, self.val_set = open_training(config.data), open_dataset(config.data, "val")
        self.teacher, self.features = open_teacher(config, self.classes), open_features(config)
        rules = config.loss.rules(len(self.classes))
        refuse_settings(*((holds, f"loss.{name}", wrong) for holds, name, wrong in rules))

    @property
    def sources(self) -> dict[str, str]:
        teachers = {"teacher": self.teacher, "features": self.features and self.features[0]}
        return {name: teacher.sha256 for name, teacher in teachers.items() if teacher}

    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        problems: list[Problem] = []
        extra = self.train_set.extra
        if extra and extra.skipped:
            whole = len(extra) + extra.skipped
            text = f"data: {extra.skipped:,} of the {whole:,} extra images have no label and are left out"
            warnings.warn(Segmv3Warning(text), stacklevel=2)
        datasets = [self.train_set, *([extra] if extra else []), self.val_set]
        for dataset in datasets:
            with progress_of(f"check {dataset.split}") as progress:
                problems += problems_in(dataset, progress)
        refuse(problems, *(dataset.split for dataset in datasets))
        for dataset in (self.train_set, self.val_set):
            found = read_pairs(dataset)  # it is remembered
            self.seen[dataset.split] = contents(dataset, found)
            if remark := class_remark(dataset, self.config.data.root, found):
                say(f"data: '{dataset.split}': {remark}")
        draws_of(self.train_set, self.config.data)  # says what cannot be drawn before there is a run

    def prepare(self, device: torch.device, class_pixels: Callable[[Dataset], Tensor]) -> None:
        teachers = self.teacher, self.features[0] if self.features else None
        loss = self.config.loss.build(len(self.classes), device, partial(class_pixels, self.train_set))
        self.terms = [*loss, *self.config.distill.build(len(self.classes), *teachers)]
        names = [term.name for term in self.terms]
        if twice := {name for name in names if names.count(name) > 1}:
            kind = type(self.config.loss).__name__
            raise ConfigError(f"loss: {kind} has two terms of the name {min(twice)!r}; give each its own")

    def build(self, batch_size: int) -> Segmenter:
        net = create_model(self.config.model, len(self.classes))
        net.check_trainable(batch_size, self.config.data.crop_size)
        return net

    def wrap(self, net: Segmenter) -> nn.Module:
        wrapped = self.config.loss.wrap(net)
        return WithProjection(wrapped, net, self.features[1]) if self.features else wrapped

    def samples(self, seed: int) -> TrainSamples:
        return TrainSamples(self.train_set, self.config.data, seed)

    def count(self, net: Segmenter, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        confusion = confusion_matrix(single_scale(net), self.val_set, device=device, indices=indices, progress=progress)
        return torch.from_numpy(confusion.matrix)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        confusion = ConfusionMatrix(len(self.classes))
        confusion.matrix = counts.numpy()
        result = scores(confusion, self.val_set, images=len(self.val_set), multi_scale_flip=False).to_dict()
        if result["miou"] is None:
            raise DataError(f"no pixel of '{self.val_set.split}' is labelled: there is nothing to score")
        return result

    def panel(self, net: Segmenter, device: torch.device) -> UInt8Array:
        rows, height = [], 0
        for index in evenly_spaced(len(self.val_set)):
            image, truth = self.val_set.read(index)
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
            with torch.inference_mode():
                labels = single_scale(net)(pixels)[0].cpu().numpy()
            row = np.hstack([image, overlay(image, truth, self.classes), overlay(image, labels, self.classes)])
            height = height or round(_PANEL_WIDTH * row.shape[0] / row.shape[1])
            rows.append(cv2.resize(row, (_PANEL_WIDTH, height), interpolation=cv2.INTER_AREA))
        return np.vstack(rows)

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        model, card = load(run.best)
        predict, metrics = Predictor(TorchBackend(model, device=device), card), run.metrics(self.metric.key)
        samples = []
        chosen = evenly_spaced(len(self.val_set))
        for number, index in enumerate(chosen, 1):
            image, truth = self.val_set.read(index)
            samples.append(Sample(self.val_set.pairs[index].name, image, truth, predict(image)))
            progress(number, len(chosen))
        write_report(
            run.folder,
            title=f"{metrics['net']} on {self.val_set.title}",
            facts=facts_of(read_manifest(run)),
            log=log,
            scores=metrics,
            classes=self.classes,
            samples=samples,
        )

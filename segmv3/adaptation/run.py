"""What `segmv3 adapt` does: label the frames, learn from the labels, measure before and after."""

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segmv3 import checkpoint
from segmv3.adaptation.pseudo import Progress, Streets, label_frames, link_frames, teacher
from segmv3.adaptation.settings import Adaptation
from segmv3.checkpoint import Card
from segmv3.config import Config, Data, Device, Loss
from segmv3.data.datasets import find_split, open_dataset
from segmv3.data.facts import Facts, read_files
from segmv3.data.listing import visible_files
from segmv3.data.sources import SOURCES, data_in
from segmv3.errors import DataError, PartialOutputError, Segmv3Warning
from segmv3.evaluation.run import evaluate
from segmv3.files import make_folder, sha256, text_sha256, write_json
from segmv3.images import read_image
from segmv3.models.segmenter import Segmenter
from segmv3.prediction.listing import ImageSource
from segmv3.prediction.sources import VideoSource, find_source
from segmv3.prediction.steady import Steady
from segmv3.records import read_json
from segmv3.runtime import Predictor, use_device
from segmv3.runtime.backends import TorchBackend
from segmv3.settings import to_dict
from segmv3.training.claim import Claim
from segmv3.training.loop import train
from segmv3.weights.averaging import origin_of
from segmv3.weights.hub import PREFIX
from segmv3.weights.names import published
from segmv3.weights.opening import SUFFIXES, open_segmenter

_LOOKED_AT = 50  # frames that agreement is measured on; flicker on four times as many


@dataclass(frozen=True)
class Adapted:
    """What came of an adaptation: `before` and `after` hold percents by what was measured.

    `labelled` and `source` are the mIoU on the labelled part and on val of the source. Without a labelled part,
    `agreement` is the share of the pixels that get the same label in one look and over several sizes and mirrored: this
    very thing is trained, so it shows that the net learned and not that it is right. `flicker` is the share of what
    does not move that changes its label from frame to frame.
    """

    weights: Path
    frames: int
    before: dict[str, float]
    after: dict[str, float]


def adapt(
    weights: Path | str,
    frames: Path | str,
    output: Path | str,
    *,
    source: Data | Path | str | None = None,
    labelled: Data | Path | str | None = None,
    run: Path | str | None = None,
    settings: Adaptation | None = None,
    device: Device = "auto",
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
    quiet: bool = True,
) -> Adapted:
    """Adapt a net to new streets without labels, or go on where that stopped; returns the scores before and after.

    Args:
        weights: weight file or published name.
        frames: what `segmv3 predict` takes, in files; or a data set: its train images, else those of val.
        output: weight file to write.
        source: a data set whose train part is learned from as well; its val part is scored.
        labelled: a data set whose val part is scored before and after; by default that of `frames`.
        run: folder for the work; runs/adapt-NAME by default.
        settings: how to adapt.
        device: where to run; "auto" takes a GPU when there is one.
        threads: CPU threads; torch's own choice by default.
        progress: called with what is being done, how much of it is done, and how much there is.
        quiet: no lines of the training.

    Raises:
        Segmv3Error: before anything is written, for what cannot be used.
        PartialOutputError: the labelled part got worse; `output` is not written, the work lies in `run`.
    """
    settings, output = settings or Adaptation(), Path(output)
    run, on = Path(run or Path("runs") / f"adapt-{output.stem}"), use_device(device, threads)
    streets, own = _streets(str(frames), run)
    net, card = open_segmenter(weights)
    source, labelled = (data_in(Path(each)) if isinstance(each, Path | str) else each for each in (source, labelled))
    card, known = _check_source(source, streets, net, card, Path(weights)) if source else (card, None)
    scored = _scored_parts(labelled or own, source, streets)
    how: dict[str, Any] = {"device": device, "threads": threads}
    asked = to_dict(settings) | {"weights": card.sha256, "source": known} | _contents(streets)
    claim = Claim(run / "adapt.json", "adaptation", "adapts a net", free=())
    claim.check(asked)
    before = {name: evaluate(data, weights, progress=progress, **how).miou for name, data in scored.items()}
    work = _Work(run, settings, card, source, progress)
    old, student = net.to(on), Path(weights)
    with claim.started(asked):
        make_folder(output.parent)
        for number in range(1, settings.rounds + 1):
            config, place = work.config(number, streets, net, student), run / f"round-{number}" / "run"
            _renew_paths(place / "config.json", config)
            student = train(config, place, quiet=quiet, **how).weights
            net = checkpoint.load(student)[0].to(on)
    after = {name: evaluate(data, student, progress=progress, **how).miou for name, data in scored.items()}
    if "labelled" not in scored:
        before, after = before | work.look(old), after | work.look(net)
    found = Adapted(output, len(visible_files(work.images)), before, after)
    _refuse_worse(found, student)
    return _write(net, card, Path(weights), found, to_dict(settings) | {"source": source.root.name if source else None})


def _refuse_worse(found: Adapted, student: Path) -> None:
    """Raises: PartialOutputError where the labelled part has a lower score than before."""
    before, after = (scores.get("labelled", 0.0) for scores in (found.before, found.after))
    if after < before:
        raise PartialOutputError(
            f"{found.weights} is not written: on the labelled part it has {after:.2f} % mIoU, {before:.2f} before; "
            f"the weights lie in {student}"
        )


def _check_source(
    source: Data, streets: ImageSource | VideoSource, net: Segmenter, card: Card, weights: Path
) -> tuple[Card, str]:
    """The card with its classes in the order of the source's, and the source's fingerprint.

    Raises: DataError for frames that the source has labels for; CheckpointError for other classes.
    """
    train_set = open_dataset(source, "train")
    card = checkpoint.in_order(card, net, train_set.classes, weights)
    checkpoint.check_classes(card, train_set.classes, weights)
    if text := _overlap(streets, train_set):
        raise DataError(f"{text}, which has labels for them: leave these out, or leave out --source")
    return card, train_set.fingerprint()


def _scored_parts(labelled: Data | None, source: Data | None, streets: ImageSource | VideoSource) -> dict[str, Data]:
    """What is scored before and after."""
    scored = {"labelled": labelled} if labelled else {}
    if source and find_split(source, "val").pairs and source != labelled:
        scored["source"] = source
    if labelled and (text := _overlap(streets, open_dataset(labelled, "val"))):
        warnings.warn(Segmv3Warning(f"data: {text}: the net adapts to what it is scored on"), stacklevel=3)
    return scored


def _write(net: Segmenter, card: Card, weights: Path, found: Adapted, settings: dict[str, Any]) -> Adapted:
    measured = {"frames": found.frames, "before": found.before, "after": found.after}
    facts: dict[str, Any] = {"adapted_from": origin_of(weights, card), "adaptation": settings | measured}
    facts |= {name: card.facts[name] for name in ("net", "config") if name in card.facts}
    checkpoint.save(net, found.weights, classes=card.classes, **facts)
    return found


@dataclass(frozen=True)
class _Work:
    """One adaptation and its folder."""

    run: Path
    settings: Adaptation
    card: Card
    source: Data | None
    progress: Progress

    @property
    def images(self) -> Path:
        return self.run / "images"

    def config(self, number: int, streets: Any, net: Segmenter, weights: Path) -> Config:
        """A round as an ordinary experiment, once its frames are labelled by a net, whose weights it starts from."""
        folder, settings = self.run / f"round-{number}", self.settings
        if not (folder / "thresholds.json").is_file():
            shown = streets if number == 1 else None
            label_frames(shown, net.eval(), self.card.classes, folder, self.images, settings, self.progress)
        elif number == 1:
            link_frames(streets, self.images, folder / "best")
        labels, size = folder / "labels", read_image(visible_files(self.images)[0]).shape
        data = Data(
            dataset=Streets(self.card.classes, self.images, labels, self.source),
            root=self.images,
            crop_size=(min(512, max(32, size[0] * 2 // 3)), min(1024, max(32, size[1] * 2 // 3))),
            photometric="randaugment",
            workers=0,
        )
        if self.source:
            data = replace(data, extra_images=self.images, extra_labels=labels, extra_share=1 - settings.source_share)
        trained = self.card.fact("config", "loss", "class_weights")
        listed = trained if settings.class_weights and isinstance(trained, list) else ()
        loss = Loss(class_weights=tuple(map(float, listed)) if len(listed) == len(self.card.names) else "none")
        return settings.config(number, replace(net.config, pretrained=str(weights)), data, loss)

    def look(self, net: Segmenter) -> dict[str, float]:
        """What can be said of a net without labels."""
        images = visible_files(self.images)
        predict = Predictor(TorchBackend(net.eval(), device=next(net.parameters()).device), self.card)
        views, steady = teacher(net, self.settings.scales), Steady(predict)
        same, some = [], images[:: math.ceil(len(images) / _LOOKED_AT)]
        for done, image in enumerate(map(read_image, some), 1):
            same.append(np.mean(predict(image) == views(image)[0]))
            self.progress("agreement", done, len(some))
        for file in images[: 4 * _LOOKED_AT]:
            steady(read_image(file))
        flicker = {"flicker": 100 * steady.flicker[0]} if steady.unmoved else {}
        return {"agreement": 100 * float(np.mean(same))} | flicker


def _streets(frames: str, run: Path) -> tuple[ImageSource | VideoSource, Data | None]:
    """The files of the frames, and the data set they are of where that has labels in val.

    Raises: DataError for what cannot be read again and again.
    """
    if Path(frames).suffix.lower() in SUFFIXES or frames.startswith(PREFIX) or frames in published():
        raise DataError(f"{frames} is a net, not frames; the order is: segmv3 adapt WEIGHTS FRAMES -o NEW")
    root = Path(frames)
    if root.is_dir() and any((root / mark).exists() for source in SOURCES.values() for mark in source.marks):
        data = data_in(root)
        train_set, val_set = find_split(data, "train"), find_split(data, "val")
        if images := train_set.images or val_set.images:
            files = tuple(paths[0] for paths in images.values())
            return ImageSource(files, tuple(images)), data if val_set.pairs else None
    found = find_source(frames, leave_out=run)
    if not isinstance(found, ImageSource | VideoSource):
        raise DataError(f"{frames} cannot be read again and again; record it to a file first")
    return found, None


def _contents(streets: ImageSource | VideoSource) -> dict[str, Any]:
    """What frames are the same by, wherever they lie."""
    names, digests = list(streets.names) if isinstance(streets, ImageSource) else [streets.name], list[str]()
    for path in streets.paths:
        with suppress(DataError):  # labelling says that it is left out
            digests.append(sha256(path))
    return {"frames": names, "SHA-256 of the frames": text_sha256("".join(digests))}


def _renew_paths(file: Path, config: Config) -> None:
    """Say where the files of a round lie now, where it began elsewhere: their contents are compared."""
    with suppress(ValueError, KeyError, TypeError):  # training says what is wrong with it
        was, now = read_json(file), to_dict(config)
        was["data"]["dataset"], was["model"]["pretrained"] = now["data"]["dataset"], now["model"]["pretrained"]
        write_json(file, was, indent=2)


def _overlap(streets: ImageSource | VideoSource, dataset: Any) -> str:
    """How many of the frames are images of a data set; empty for none."""
    files = [pair.image for pair in dataset.pairs], streets.paths if isinstance(streets, ImageSource) else ()
    found = (read_files([(path, "image") for path in each]) for each in files)
    theirs, ours = ({facts.digest for facts in each if isinstance(facts, Facts)} for each in found)
    both = len(ours & theirs)
    return f"{both:,} of the {len(ours):,} frames are images of '{dataset.split}' of {dataset.title}" if both else ""

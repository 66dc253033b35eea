"""What follows a run while it is trained: TensorBoard, trackio, or a tracker of the user's own."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.errors import ConfigError, ResourceError, Segmv3Warning, printable, shortened
from segmv3.settings import flat

Panel = Callable[[], NDArray[np.uint8] | None]
"""Makes a picture of samples, uint8 H x W x 3 RGB, when it is called; None where there is none."""


class Tracker(ABC):
    """What is told of a run. Derive from it to send the numbers of a run wherever you want them.

    An error that a method raises ends this tracker and not the run. Of several processes the first alone tells.
    """

    @abstractmethod
    def begin(self, folder: Path, manifest: dict[str, Any], step: int) -> None:
        """The run begins, or goes on.

        Args:
            folder: of the run.
            manifest: the content of manifest.json.
            step: where the run stands. What was told earlier about later steps no longer holds.
        """

    @abstractmethod
    def step(self, entry: dict[str, Any]) -> None:
        """A line of log.jsonl about training: step, loss, lr, images_per_second, wait."""

    @abstractmethod
    def evaluation(self, entry: dict[str, Any], scores: dict[str, Any], panel: Panel) -> None:
        """The net was scored.

        Args:
            entry: the line of log.jsonl.
            scores: all scores in percent, those of each class among them.
            panel: makes a picture of some images, their truth and their prediction.
        """

    @abstractmethod
    def end(self, manifest: dict[str, Any]) -> None:
        """The training ended; `manifest["status"]` says how."""


class TensorBoard(Tracker):
    """Event files in `RUN/tensorboard`: loss, learning rate, speed, scores, and a panel of samples."""

    def __init__(self) -> None:
        _need("tensorboard", "log")

    def begin(self, folder: Path, manifest: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def step(self, entry: dict[str, Any]) -> None:
        for name, value in numbers(entry).items():
            self._writer.add_scalar(name, value, entry["step"])
        self._writer.flush()

    def evaluation(self, entry: dict[str, Any], scores: dict[str, Any], panel: Panel) -> None:
        for name, value in class_scores(scores).items():
            self._writer.add_scalar(name, value, entry["step"])
        if (picture := panel()) is not None:
            self._writer.add_image("samples", picture, entry["step"], dataformats="HWC")
        self.step(entry)

    def end(self, manifest: dict[str, Any]) -> None:
        self._writer.close()


class Trackio(Tracker):
    """A run of the project "segmv3" in trackio's local database: `trackio show --project segmv3`."""

    def __init__(self) -> None:
        self._package = _need("trackio", "trackio")

    def begin(self, folder: Path, manifest: dict[str, Any], step: int) -> None:
        facts = {f"settings.{name}": value for name, value in flat(manifest["settings"]).items()}
        facts |= flat({name: manifest[name] for name in ("net", "start", "machine", "versions")})
        quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        resume = "allow" if step else "never"
        self._run = self._package.init(project="segmv3", name=folder.name, config=facts, resume=resume, **quiet)

    def step(self, entry: dict[str, Any]) -> None:
        self._run.log(numbers(entry), step=entry["step"])

    def evaluation(self, entry: dict[str, Any], scores: dict[str, Any], panel: Panel) -> None:
        found = numbers(entry) | class_scores(scores)
        if (picture := panel()) is not None:
            found["samples"] = self._package.Image(picture)
        self._run.log(found, step=entry["step"])

    def end(self, manifest: dict[str, Any]) -> None:
        self._run.finish()


def numbers(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of log.jsonl, named as trackers group them: `train/loss`, `eval/miou`."""
    return {f"{entry['event']}/{name}": value for name, value in entry.items() if name not in ("event", "step")}


def class_scores(scores: dict[str, Any]) -> dict[str, float]:
    """The IoU of each class as `IoU/road`; a class without pixels has none."""
    rows = scores.get("classes", [])
    return {f"IoU/{row['name']}": row["iou"] for row in rows if row.get("iou") is not None}


_NAMED: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def open_trackers(wanted: Iterable[Tracker | str]) -> list[Tracker]:
    """Trackers by name, each once.

    Args:
        wanted: "tensorboard", "trackio", `MODULE:CLASS` of a file beside the config, or a tracker.

    Raises:
        ConfigError: there is no such tracker.
        ResourceError: its package is not installed.
    """
    return [_named(each) if isinstance(each, str) else each for each in dict.fromkeys(wanted)]


def _named(name: str) -> Tracker:
    module, _, kind = name.partition(":")
    if kind:
        try:
            made = getattr(import_module(module), kind)()
        except Exception as error:  # it is the user's own code
            raise ConfigError(f"--track {name} fails with {type(error).__name__}: {shortened(error, 120)}") from None
        if isinstance(made, Tracker):
            return made
        raise ConfigError(f"--track {name} is no tracker; derive it from segmv3.training.trackers.Tracker")
    if name not in _NAMED:
        raise ConfigError(f"--track {name}: there is {', '.join(_NAMED)}, or MODULE:CLASS from beside the config")
    return _NAMED[name]()


def _need(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        flag = "--tensorboard" if package == "tensorboard" else f"--track {package}"
        raise ResourceError(f'{flag} needs the package {package}: pip install "segmv3[{extra}]"') from None


class Trackers:
    """All trackers of a run, told together."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def tell(self, method: str, *what: Any) -> None:
        """Call a method of each. One that fails is left out from then on: it must not end a long run.

        Warns:
            Segmv3Warning: what failed.
        """
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*what)
            except Exception as error:
                self._trackers.remove(tracker)
                text = printable(shortened(f"{type(error).__name__}: {error}", 160))
                kind = type(tracker).__name__
                warnings.warn(Segmv3Warning(f"tracker {kind} failed ({text}) and is left out"), stacklevel=2)

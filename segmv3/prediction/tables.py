"""Numbers of each picture or frame: how much of it is of which class, where one can drive, how sure the net is."""

import csv
import io
import json
from dataclasses import dataclass

import numpy as np

from segmv3.prediction.contract import Job, Shot
from segmv3.prediction.gathering import Gathered, Piece
from segmv3.prediction.shapes import largest_outline


@dataclass(frozen=True)
class Row:
    """What is told of one picture."""

    file: str
    frame: int | None
    """Its number in a video, from 0."""
    seconds: float | None
    """Since the first frame of a video."""
    size: tuple[int, int]
    """Height and width."""
    pixels: dict[str, int]
    """Of each class, by name."""
    drivable: list[list[float]] | None
    """Points [x, y] of the largest connected part of the class `road`; None where there is no such class."""
    confidence: float | None
    """Mean over the labelled pixels, 0..1."""

    @classmethod
    def of(cls, shot: Shot, job: Job) -> "Row":
        """Count a picture."""
        names = job.classes.names
        counts = np.bincount(shot.labels.ravel(), minlength=256)[: len(names)].tolist()
        road = next((i for i, name in enumerate(names) if name.lower() == "road"), None)
        return cls(
            shot.file,
            None if shot.time is None else int(shot.name),
            None if shot.time is None else round(float(shot.time), 6),
            shot.labels.shape,
            dict(zip(names, counts, strict=True)),
            None if road is None else largest_outline((shot.labels == road).view(np.uint8)),
            mean_confidence(shot, job),
        )

    def share(self, name: str) -> float:
        """Part of the labelled pixels that is of a class."""
        return round(self.pixels[name] / max(1, sum(self.pixels.values())), 6)


def mean_confidence(shot: Shot, job: Job) -> float | None:
    """Over the labelled pixels; None where it is not known."""
    labelled = shot.labels < len(job.classes)
    if shot.confidence is None or not labelled.any():
        return None
    return round(float(shot.confidence[labelled].mean()) / 255, 4)


class JsonTable(Gathered):
    """An object for each picture, in a list."""

    name = "json"
    confidence = "used"
    file = "predictions.json"
    between = ",\n"

    def begin(self, job: Job) -> str:
        return f'{{"classes": {json.dumps(job.classes.names)},\n"pictures": [\n'

    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        row = Row.of(shot, job)
        about = {
            **{"file": row.file, "frame": row.frame, "seconds": row.seconds},
            **{"width": row.size[1], "height": row.size[0], "mean_confidence": row.confidence},
            "classes": {name: {"share": row.share(name), "pixels": count} for name, count in row.pixels.items()},
            "drivable": row.drivable,
        }
        return json.dumps(about), ""

    def end(self, tails: str) -> str:
        return "\n]}\n"


class CsvTable(Gathered):
    """A line for each picture."""

    name = "csv"
    confidence = "used"
    file = "predictions.csv"

    def begin(self, job: Job) -> str:
        shares, pixels = ([f"{what} {name}" for name in job.classes.names] for what in ("share", "pixels"))
        about = ("file", "frame", "seconds", "width", "height", "mean confidence")
        return _line([*about, *shares, *pixels, "drivable polygon"])

    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        row = Row.of(shot, job)
        points = [*row.drivable, row.drivable[0]] if row.drivable else []
        outline = f"POLYGON (({', '.join(f'{x} {y}' for x, y in points)}))" if points else ""
        shares = map(row.share, row.pixels)
        about = (row.file, row.frame, row.seconds, row.size[1], row.size[0], row.confidence)
        return _line([*about, *shares, *row.pixels.values(), outline]), ""


def _line(cells: list[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()

"""Where the time goes between an image file and the picture of its labels, stage by stage."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segmv3.benchmark.memory import Peak, peak_memory
from segmv3.benchmark.nets import Place, open_fresh, open_weights
from segmv3.benchmark.pictures import Size
from segmv3.benchmark.roofline import Work, copied_gbytes, matrix_gflops, work_of
from segmv3.benchmark.timing import Progress, Times, in_turns
from segmv3.config import AnyBackend, AnyPrecision
from segmv3.images import UInt8Array, read_image, write_png
from segmv3.media.draw import overlay, with_legend
from segmv3.models.zoo import net
from segmv3.runtime import Predictor
from segmv3.runtime.predictor import STAGES as OF_PREDICTOR

STAGES = ("decode file", *OF_PREDICTOR, "draw", "encode")
"""A file is read, the predictor works in its own stages, the labels are drawn over the image, the PNG is written."""


@dataclass(frozen=True)
class Case:
    """A net at one size, by one runtime. All of it can be sent to another process."""

    net: str
    """A named net with fresh weights, or where the weights are."""
    trained: bool
    size: Size
    backend: AnyBackend = "auto"
    precision: AnyPrecision = "auto"

    def open(self, picture: UInt8Array, place: Place) -> Predictor:
        """Raises: what opening weights raises; ModelError for a net, backend or precision that is not there."""
        if self.trained:
            return open_weights(self.net, self.backend, self.precision, place)
        return open_fresh(net(self.net), picture, self.backend, self.precision, place)


@dataclass(frozen=True)
class Row:
    """The times of a case, and what they are compared with."""

    case: Case
    name: str
    """Name of the net, or of its file with as many folders as make it unique."""
    backend: str
    precision: str
    threads: int
    stages: Mapping[str, Times]
    total: Times
    labelling: Times
    """Time from pixels to labels: the sum of the predictor's stages."""
    memory: Peak | None
    work: Work | None
    """Operations and memory traffic. None for a file whose settings are not known."""
    gflops: float | None
    """GFLOP/s of a matrix product on this machine in the same arithmetic."""
    bandwidth: float
    """GB/s of a copy in memory on this machine. Bytes that are read and bytes that are written both count."""

    @property
    def overhead(self) -> float:
        """Percent of labelling that is not the net."""
        return 100 * (1 - self.stages["net"].median / self.labelling.median)

    @property
    def floor(self) -> float | None:
        """Seconds that the net's multiplications would take at the speed of a matrix product."""
        return self.work.gflop / self.gflops if self.work and self.gflops else None

    @property
    def gbytes(self) -> float | None:
        """Gigabytes that the net's convolutions read and write."""
        return self.work.gbytes(self.precision) if self.work else None

    def facts(self) -> dict[str, Any]:
        """What a receipt holds of it."""
        return {
            "net": self.case.net,
            "trained": self.case.trained,
            "size": list(self.case.size),
            "backend": self.backend,
            "precision": self.precision,
            "threads": self.threads,
            "stages": {name: times.facts() for name, times in self.stages.items()},
            "labelling": self.labelling.facts(),
            "total": self.total.facts(),
            "overhead_percent": round(self.overhead, 2),
            "memory_mib": self.memory.facts() if self.memory else None,
            "gflop": self.work and round(self.work.gflop, 3),
            "matrix_product_gflops": self.gflops and round(self.gflops, 1),
            "floor_ms": self.floor and round(1000 * self.floor, 2),
            "gbytes": self.gbytes and round(self.gbytes, 4),
            "copy_gbytes_per_second": round(self.bandwidth, 1),
        }


def time_stages(
    cases: Sequence[Case],
    files: Mapping[Size, Path],
    place: Place,
    repeat: int,
    *,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> list[Row]:
    """Time all stages of all cases, by turns.

    Args:
        files: an image file of each size.
        say: is told what is being done.

    Raises:
        Segmv3Error: the weights cannot be opened.
        DataError: an image cannot be read; it is named.
    """
    predictors = {}
    for case in cases:
        say(f"opening {case.net} for {case.size[0]}x{case.size[1]}")
        predictors[case] = case.open(read_image(files[case.size]), place)
    say("timing")
    target = place.folder / "overlay.png"
    measures = {case: partial(_stages, predict, files[case.size], target) for case, predict in predictors.items()}
    found = in_turns(measures, repeat, progress=progress)
    rows = []
    names = short_names([case.net for case in cases])
    for case, predict in predictors.items():
        say(f"memory of {case.net} at {case.size[0]}x{case.size[1]}")
        each = found[case]
        rows.append(
            Row(
                case,
                names[case.net],
                predict.backend,
                predict.precision,
                predict.threads,
                {stage: Times(tuple(one[stage] for one in each)) for stage in STAGES},
                Times(tuple(sum(one.values()) for one in each)),
                Times(tuple(sum(one[stage] for stage in OF_PREDICTOR) for one in each)),
                peak_memory(partial(_once, case, files[case.size], place)) if memory else None,
                None if case.trained else work_of(net(case.net), case.size),
                matrix_gflops(predict.precision, place.device),
                copied_gbytes(place.device),
            )
        )
    return rows


def short_names(sources: Sequence[str]) -> dict[str, str]:
    """Shorten each path to its last part. Where two would be equal, keep as many folders as tell them apart."""

    ends = {s: [Path(*Path(s).parts[-n:]).as_posix() for n in range(1, len(Path(s).parts) + 1)] for s in sources}
    names = {}
    for source, own in ends.items():
        others = {end for other in ends if other != source for end in ends[other]}
        names[source] = next((end for end in own if end not in others), source)
    return names


def _stages(predict: Predictor, file: Path, target: Path) -> dict[str, float]:
    """Seconds of every stage, once."""
    began = time.perf_counter()
    image = read_image(file)
    decoded = time.perf_counter()
    labels = predict(image)
    labelled = time.perf_counter()
    picture = with_legend(overlay(image, labels, predict.classes), predict.classes, labels)
    drawn = time.perf_counter()
    write_png(target, picture)
    encoded = time.perf_counter()
    outer = {"decode file": decoded - began, "draw": drawn - labelled, "encode": encoded - drawn}
    return {stage: (outer | predict.timings)[stage] for stage in STAGES}


def _once(case: Case, file: Path, place: Place) -> None:
    picture = read_image(file)
    case.open(picture, place)(picture)

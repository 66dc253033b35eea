"""The paper's claims about speed (arXiv 1905.02244, tables 7 and 8), timed here.

Its latencies are of one big core of a Pixel 3 by TensorFlow Lite; ours are of this machine. Ratios travel, seconds do
not. Its images are 1024x2048 ("f") and 512x1024 ("h").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from segmv3.benchmark.nets import Place, open_fresh
from segmv3.benchmark.pictures import Size
from segmv3.benchmark.timing import Progress, Times, in_turns
from segmv3.config import AnyBackend, AnyPrecision, Model
from segmv3.images import UInt8Array
from segmv3.models.zoo import NETS, PAPER_NETS
from segmv3.runtime import Predictor

FULL: Size = (1024, 2048)
HALF: Size = (512, 1024)


def _at_stride_32(net: Model) -> Model:
    return replace(net, backbone=replace(net.backbone, output_stride=32))  # type: ignore[call-arg]


LARGE, SMALL = "paper_08_large_rf2_lraspp", "paper_11_small_rf2_lraspp"
TIMED: Mapping[str, Model] = MappingProxyType(
    {
        **PAPER_NETS,
        "large_os32": _at_stride_32(NETS["lraspp_large_d8"]),
        "small_os32": _at_stride_32(NETS["lraspp_small_d8"]),
    }
)
"""All rows of table 7, and the two of table 8 that are not in it."""

SECONDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "paper_01_v2_raspp": (3.90, 1.02),
        "paper_02_v2_rf2_raspp": (3.03, 0.793),
        "paper_03_v2_rf2_lraspp_f256": (2.98, 0.786),
        "paper_04_v2_rf2_lraspp": (2.89, 0.766),
        "paper_05_large_raspp": (3.55, 0.906),
        "paper_06_large_rf2_raspp": (2.60, 0.668),
        "paper_07_large_rf2_lraspp_f256": (2.55, 0.659),
        LARGE: (2.47, 0.657),
        "paper_09_v2_x0.5_rf2_lraspp": (1.59, 0.415),
        "paper_10_v2_x0.35_rf2_lraspp": (1.27, 0.354),
        SMALL: (1.21, 0.327),
        "large_os32": (2.06, 0.534),
        "small_os32": (1.03, 0.275),
    }
)
"""What the paper gives, at full and at half size."""


@dataclass(frozen=True)
class Claim:
    """The time of one net as a share of another's."""

    title: str
    net: str
    of: str
    note: str = ""


CLAIMS = (
    Claim(
        "V3-Large LR-ASPP against V2 R-ASPP (row 8 / 1)",
        LARGE,
        "paper_01_v2_raspp",
        "30 to 34 % faster in the paper's words; its last table says 37 and 36 %, an earlier one 32 %",
    ),
    Claim("V3-Large R-ASPP against V2 R-ASPP (5 / 1)", "paper_05_large_raspp", "paper_01_v2_raspp"),
    Claim("half the filters in the last block, V2 (2 / 1)", "paper_02_v2_rf2_raspp", "paper_01_v2_raspp"),
    Claim("half the filters in the last block, V3 (6 / 5)", "paper_06_large_rf2_raspp", "paper_05_large_raspp"),
    Claim("LR-ASPP against R-ASPP, V3 (7 / 6)", "paper_07_large_rf2_lraspp_f256", "paper_06_large_rf2_raspp"),
    Claim("F 128 against 256, V2 (4 / 3)", "paper_04_v2_rf2_lraspp", "paper_03_v2_rf2_lraspp_f256"),
    Claim("F 128 against 256, V3 (8 / 7)", LARGE, "paper_07_large_rf2_lraspp_f256"),
    Claim("output stride 32 against 16, Large", "large_os32", LARGE),
    Claim("output stride 32 against 16, Small", "small_os32", SMALL),
    Claim("Small against Large (11 / 8)", SMALL, LARGE),
    Claim("V3-Small against V2 x0.35 (11 / 10)", SMALL, "paper_10_v2_x0.35_rf2_lraspp"),
)


@dataclass(frozen=True)
class Row:
    """A net, timed at full and at half size."""

    net: str
    times: Mapping[Size, Times]
    """Of the net alone, from pixels to logits at low resolution, as in the paper."""
    labelling: Mapping[Size, Times]
    """From pixels to labels of the image's size."""

    def facts(self) -> dict[str, Any]:
        """For a receipt."""
        sizes = [
            {"size": list(size), "net": self.times[size].facts(), "labelling": self.labelling[size].facts()}
            for size in self.times
        ]
        paper = [1000 * value for value in SECONDS[self.net]]
        return {"net": self.net, "sizes": sizes, "paper_ms": paper}


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured: time over time, at full and half size."""

    claim: Claim
    paper: tuple[float, float]
    here: tuple[float, float]

    def facts(self) -> dict[str, Any]:
        """For a receipt."""
        return {
            "claim": self.claim.title,
            "net": self.claim.net,
            "of": self.claim.of,
            "paper": [round(value, 4) for value in self.paper],
            "here": [round(value, 4) for value in self.here],
        }


def time_nets(
    pictures: Sequence[UInt8Array],
    place: Place,
    repeat: int,
    *,
    nets: Sequence[str] = tuple(TIMED),
    backend: AnyBackend = "auto",
    precision: AnyPrecision = "fp32",
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> list[Row]:
    """Time nets of the paper by turns.

    Args: pictures: one street, full and half size.
    Raises: ModelError for a backend or precision that is missing here.
    """
    predictors: dict[str, Predictor] = {}
    for name in nets:
        say(f"opening {name}")
        predictors[name] = open_fresh(TIMED[name], pictures[0], backend, precision, place)
    say("timing")
    measures = {
        (name, picture.shape[:2]): partial(_stages, predict, picture)
        for name, predict in predictors.items()
        for picture in pictures
    }
    found = in_turns(measures, repeat, progress=progress)
    sizes = [picture.shape[:2] for picture in pictures]
    return [
        Row(
            name,
            {size: Times(tuple(one["net"] for one in found[name, size])) for size in sizes},
            {size: Times(tuple(sum(one.values()) for one in found[name, size])) for size in sizes},
        )
        for name in nets
    ]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """The claims about nets that were timed."""
    medians = {row.net: [times.median for times in row.times.values()] for row in rows}
    return [
        Finding(claim, _ratio(SECONDS[claim.net], SECONDS[claim.of]), _ratio(medians[claim.net], medians[claim.of]))
        for claim in CLAIMS
        if claim.net in medians and claim.of in medians
    ]


def _ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    return a[0] / b[0], a[1] / b[1]


def _stages(predict: Predictor, picture: UInt8Array) -> dict[str, float]:
    predict(picture)
    return predict.timings

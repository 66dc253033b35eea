"""How fast nets train: whole steps of ours, beside the plain loops that other projects' users run.

All train on the same drawn crops, uint8 and held on the device, so that no loader is measured: 19 classes, SGD with
momentum, and the loss at the size of the crop.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.benchmark.memory import peak_memory
from segmv3.benchmark.nets import CLASSES, Place
from segmv3.benchmark.roofline import copied_gbytes, matrix_gflops, work_of
from segmv3.benchmark.timing import Progress, Times, in_turns
from segmv3.config import LRASPP, SGD, LRASPPDecoder, MobileNetV3, Model, TrainingPrecision
from segmv3.errors import is_out_of_memory
from segmv3.labels import IGNORE
from segmv3.models import zoo
from segmv3.training.losses.functional import cross_entropy
from segmv3.training.optim import build_optimizer
from segmv3.training.recompute import recompute

Step = Callable[[], None]
"""One whole training step: forward, loss, backward, optimiser."""

LONG_RUN = 320_000
"""Steps of mmsegmentation's Cityscapes schedules."""

_BACKWARD = 3
"""A training step against a forward pass: each convolution is computed again for its input and for its weights."""
_TOGETHER = {"cpu": 1, "cuda": 5}
"""Steps that are timed together: a GPU waits for its last one only, as in the loop, which reads no loss in between."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One way to train one net. All of it can be sent to another process."""

    name: str
    net: str
    """A named net; a peer's is its sibling."""
    size: tuple[int, int]
    batch: int
    kind: Literal["ours", "same net", "torchvision", "mmsegmentation"] = "ours"
    """Our step with the named net, our step with torchvision's sibling of it, or a plain loop."""
    precision: TrainingPrecision = "fp32"
    compile: bool = False
    recompute: bool = False
    channels_last: bool = True

    @property
    def settings(self) -> Model:
        """Of the net that is trained."""
        settings = zoo.net(self.net)
        return torchvisions(settings) if self.kind in ("same net", "torchvision") else settings

    def open(self, place: Place) -> Step:
        """Raises: anything at all when it cannot be used."""
        device = place.use()
        images, labels = crops(self.size, self.batch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.kind == "torchvision":
                return _torchvision(self, images.to(device), labels.to(device))
            if self.kind == "mmsegmentation":
                return _mmsegmentation(self, images.to(device), labels.to(device))
            return _ours(self, images.to(device), labels.to(device))


def torchvisions(net: Model) -> Model:
    """torchvision's LR-ASPP of the same size (`lraspp_mobilenet_v3_large`, or its Small sibling) as a net of ours.

    Its backbone ends in all filters, as torchvision builds it by default, so it is larger than the paper's.
    """
    size = net.backbone.size if isinstance(net.backbone, MobileNetV3) else "large"
    backbone = MobileNetV3(size=size, family="torchvision", output_stride=16)
    return Model(backbone=backbone, head=LRASPP(tap="output", gate="sigmoid", gate_bias=False))


def crops(size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor]:
    """The same in every run: images uint8 N x 3 x H x W, labels uint8 N x H x W in blocks, 255 among them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    blocks = torch.randint(0, CLASSES + 1, (batch, 1, -(-size[0] // 16), -(-size[1] // 16)), generator=generator)
    labels = F.interpolate(blocks.float(), scale_factor=16)[:, 0, : size[0], : size[1]].to(torch.uint8)
    return images, labels.where(labels < CLASSES, IGNORE).contiguous()


# --- the steps ---


def _ours(case: Case, images: Tensor, labels: Tensor) -> Step:
    """What the training loop does with a batch, augmentation left out: channels_last, fused loss, fused optimiser."""
    net = zoo.create_model(case.settings, CLASSES)
    net.check_trainable(case.batch, case.size)
    net = net.to(images.device).to(memory_format=torch.channels_last).train()
    if case.recompute:
        recompute(net)
    optimizer = build_optimizer(net, SGD())
    low_logits = torch.compile(net.low_logits, dynamic=False) if case.compile else net.low_logits
    dtype = _DTYPES.get(case.precision)
    scaler = torch.amp.GradScaler(images.device.type, enabled=case.precision == "fp16")

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            low = low_logits(images)
        total, count = cross_entropy(low.float(), labels)
        scaler.scale(total / count.clamp(min=1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _plain(net: nn.Module, logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, layout: Any) -> Step:
    """A loop as in tutorials: eager, fp32, logits enlarged to the crop, `F.cross_entropy`, SGD."""
    net = net.to(images.device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, targets = images.contiguous(memory_format=layout), labels.long()

    def step() -> None:
        loss = F.cross_entropy(logits(images), targets, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _torchvision(case: Case, images: Tensor, labels: Tensor) -> Step:
    from torchvision.models import mobilenetv3
    from torchvision.models.segmentation import lraspp, lraspp_mobilenet_v3_large

    if case.settings.backbone.size == "large":  # type: ignore[attr-defined]
        net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    else:  # torchvision names no Small one, but builds it by the same function
        net = lraspp._lraspp_mobilenetv3(mobilenetv3.mobilenet_v3_small(dilated=True), CLASSES)
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (Model().mean, Model().std))
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    return _plain(net, lambda x: net((x.float() - mean) / std)["out"], images, labels, layout)


def _mmsegmentation(case: Case, images: Tensor, labels: Tensor) -> Step:
    """mmsegmentation's net as its own code trains it, without needing it: NCHW, fp32, logits of full size."""
    net = zoo.create_model(case.settings, CLASSES)
    net.check_trainable(case.batch, case.size)
    return _plain(net, net, images, labels, torch.contiguous_format)


def cases(
    nets: Sequence[str],
    size: tuple[int, int],
    batch: int,
    precisions: Sequence[TrainingPrecision],
    compiled: Sequence[bool],
    recomputed: Sequence[bool] = (False,),
    *,
    peers: bool = True,
) -> list[Case]:
    """Ours in every arithmetic, eager, compiled and recomputed, and the plain loops with nets of their kind.

    Args: recomputed: compiled steps are never.
    """
    ways = [(c, r) for c, r in itertools.product(compiled, recomputed) if not (c and r)]
    found: dict[str, Case] = {}

    def add(case: Case) -> None:
        found.setdefault(case.name, case)  # two nets may have the same sibling

    for net in nets:
        for precision in precisions:
            for compile, again in ways:
                suffix = f"{precision}{', compiled' if compile else ''}{', recomputed' if again else ''}"
                how = (precision, compile, again)
                add(Case(f"segmv3 {net}, {suffix}", net, size, batch, "ours", *how))
                if peers and not isinstance(zoo.net(net).head, LRASPPDecoder):
                    kin = f"segmv3, torchvision's {_size(net)} net, {suffix}"
                    add(Case(kin, net, size, batch, "same net", *how))
        if not peers:
            continue
        if isinstance(zoo.net(net).head, LRASPPDecoder):
            name = f"mmsegmentation's {net.removesuffix('_mmseg')} (our copy), plain loop"
            add(Case(name, net, size, batch, "mmsegmentation", channels_last=False))
        else:
            for channels_last in (False, True):
                layout = "channels_last" if channels_last else "NCHW"
                name = f"torchvision LR-ASPP {_size(net)}, plain loop, {layout}"
                add(Case(name, net, size, batch, "torchvision", channels_last=channels_last))
    return list(found.values())


def _size(net: str) -> str:
    backbone = zoo.net(net).backbone
    return backbone.size.title() if isinstance(backbone, MobileNetV3) else "Large"


# --- timing ---


@dataclass(frozen=True)
class Row:
    """The times of a case. None where it cannot be used; `reason` says why."""

    case: Case
    reason: str = ""
    times: Times | None = None
    """Of a step."""
    memory: float | None = None
    """MiB, the most that a step needs: of the GPU, or of a process that does nothing else."""
    gflop: float = 0.0
    """GFLOP of a step, if it did nothing but convolutions."""
    floor: float | None = None
    """Seconds that a step would take at the speed of a matrix product or of a copy in memory, whichever is longer."""
    bound: str = ""
    """Which of the two."""

    @property
    def images_per_second(self) -> float:
        return self.case.batch / self.times.median if self.times else float("nan")

    @property
    def share(self) -> float | None:
        """The floor as a share of the time."""
        return self.floor / self.times.median if self.floor and self.times else None

    @property
    def hours(self) -> float:
        """Hours of a run of `LONG_RUN` steps that never waits for data."""
        return LONG_RUN * self.times.median / 3600 if self.times else float("nan")

    def facts(self) -> dict[str, Any]:
        """For a receipt."""
        case = self.case
        facts: dict[str, Any] = {
            "name": case.name,
            "net": case.net,
            "kind": case.kind,
            "size": list(case.size),
            "batch": case.batch,
            "precision": case.precision,
            "compile": case.compile,
            "recompute": case.recompute,
            "channels_last": case.channels_last,
        }
        if not self.times:
            return facts | {"reason": self.reason}
        return (
            facts
            | self.times.facts()
            | {
                "images_per_second": round(self.images_per_second, 3),
                "memory_mib": self.memory and round(self.memory),
                "gflop": round(self.gflop, 2),
                "floor_ms": self.floor and round(1000 * self.floor, 3),
                "bound": self.bound,
                f"hours_for_{LONG_RUN}_steps": round(self.hours, 2),
            }
        )


def time_steps(
    found: Sequence[Case],
    place: Place,
    repeat: int,
    *,
    budget: float | None = 20.0,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> list[Row]:
    """Time the steps of all cases, by turns, and see how much memory each takes.

    Args: budget: seconds for the turns of each. memory: on a GPU it is always known. say: told what is being done.
    """
    with _compiled_one_by_one(sum(case.compile for case in found)):
        return _rows(found, place, repeat, budget, memory, say, progress)


@contextmanager
def _compiled_one_by_one(count: int) -> Iterator[None]:
    """Every case as in a process of its own, where there is one net with one shape.

    Dynamo counts by code, which all nets share: from the second shape on it would compile for any shape, from the ninth
    on nothing at all, silently.
    """
    if not count:
        yield
        return
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=count + 1, fail_on_recompile_limit_hit=True):
        yield


def _rows(
    found: Sequence[Case],
    place: Place,
    repeat: int,
    budget: float | None,
    memory: bool,
    say: Callable[[str], None],
    progress: Progress | None,
) -> list[Row]:
    reasons: dict[Case, str] = {}
    peaks: dict[Case, float] = {}
    measures: dict[Case, Callable[[], float]] = {}
    for case in found:
        say(f"opening {case.name}")
        try:
            step, peak = _opened(case, place)
        except Exception as error:  # whatever ails one, the others are measured
            reasons[case] = _why_not(error)
            continue
        measures[case] = partial(_seconds, step, place.device)
        if peak is not None:
            peaks[case] = peak
    say("timing")
    times = in_turns(measures, repeat, budget=budget, progress=progress)
    measures.clear()  # gives their memory back
    rows = []
    for case in found:
        if case not in times:
            rows.append(Row(case, reasons[case]))
            continue
        if memory and place.device == "cpu":
            say(f"memory of {case.name}")
            peaks[case] = peak_memory(partial(_few_steps, case, place)).peak
        gflop, floor, bound = _floor(case, place)
        rows.append(Row(case, "", Times(tuple(times[case])), peaks.get(case), gflop, floor, bound))
    return rows


def _opened(case: Case, place: Place) -> tuple[Step, float | None]:
    """A step that has run and, on a GPU, the MiB that it needs beside what was there before."""
    on_gpu = place.device == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    step = case.open(place)
    step()  # compiles, and makes the optimiser's state
    if not on_gpu:
        return step, None
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return step, (torch.cuda.max_memory_allocated() - before) / 2**20


def _seconds(step: Step, device: str) -> float:
    """Of one step, the mean of as many as a device works through without waiting."""
    began = time.perf_counter()
    for _ in range(_TOGETHER[device]):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / _TOGETHER[device]


def _few_steps(case: Case, place: Place) -> None:
    step = case.open(place)
    step()
    step()


def _floor(case: Case, place: Place) -> tuple[float, float | None, str]:
    """GFLOP of a step, the seconds it takes at best, and what they are spent on."""
    work = work_of(case.settings, case.size, CLASSES)
    gflop = _BACKWARD * case.batch * work.gflop
    reached = matrix_gflops(case.precision, place.device)
    moving = _BACKWARD * work.gbytes(case.precision, case.batch) / copied_gbytes(place.device)
    if reached is None:
        return gflop, moving, "memory"
    return gflop, max(gflop / reached, moving), "compute" if gflop / reached > moving else "memory"


def _why_not(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory"
    return f"cannot be used ({' '.join(str(error).split())[:120]})"


def baselines(rows: Sequence[Row]) -> Mapping[Case, float]:
    """Images per second of the fastest plain loop with a net of the same kind, by case, where one was timed."""

    def kin(case: Case) -> str:
        decoder = isinstance(zoo.net(case.net).head, LRASPPDecoder)
        return case.net if decoder else _size(case.net)

    plain: dict[str, float] = {}
    for row in rows:
        if row.times and row.case.kind in ("torchvision", "mmsegmentation"):
            plain[kin(row.case)] = max(plain.get(kin(row.case), 0.0), row.images_per_second)
    return {row.case: plain[kin(row.case)] for row in rows if row.times and kin(row.case) in plain}

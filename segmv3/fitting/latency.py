"""The table of block latencies: every part of a net alone, at a few widths, in the runtime that will run the net.

What lies between the widths of the table is interpolated. Whole nets tell what the parts lack, such as the start of a
call, and how far the table is off.
"""

import hashlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from segmv3.benchmark.timing import in_turns
from segmv3.checkpoint import Card
from segmv3.convert.base import open_file
from segmv3.convert.extras import import_openvino, openvino_core, scratch_folder, silence
from segmv3.convert.graph import Output
from segmv3.convert.metadata import describe
from segmv3.convert.onnx import OPSET
from segmv3.convert.openvino import cpu_settings
from segmv3.convert.targets import find_target
from segmv3.errors import OutputError, ResourceError
from segmv3.files import cache_folder, make_folder, write_json
from segmv3.fitting.cut import Group, Widths, groups_of, with_widths
from segmv3.fitting.settings import Runtime
from segmv3.labels import numbered_classes
from segmv3.models.classifier import ImageClassifier
from segmv3.models.fold import folded
from segmv3.models.mobilenetv3 import MobileNetV3Backbone, exact_widths
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import build
from segmv3.records import read_json, typed
from segmv3.runtime.backends import TorchBackend
from segmv3.runtime.machine import cpu_flags, cpu_name, versions
from segmv3.settings import to_dict

Call = Callable[[], object]
Progress = Callable[[str, int, int], None]
_CHECKED = 4  # whole nets that the table is held against
_REPEAT = 30
_CALLS = 100  # of a whole net
_SECONDS = 0.06  # for each entry of the table


@dataclass
class Table:
    """Latencies of the parts of a net by their widths, milliseconds, and what whole nets say of them."""

    groups: list[Group]
    parts: dict[str, tuple[int, ...]]
    """The groups that decide about the time of each part, as places in `groups`."""
    levels: dict[str, list[list[int]]]
    """The widths of the table, by part and group, rising."""
    times: dict[str, float] = field(default_factory=dict)
    offset: float = 0.0
    factor: float = 1.0
    checks: list[tuple[float, float]] = field(default_factory=list)
    """(predicted, measured) of whole nets that the table was not adjusted to."""

    def predict(self, widths: Widths) -> float:
        """Milliseconds of a whole net."""
        return self.offset + self.factor * self.summed(widths)

    def summed(self, widths: Widths) -> float:
        """Milliseconds of its parts."""
        return sum(self._of_part(name, widths) for name in self.parts)

    @property
    def error(self) -> float:
        """The largest difference between table and whole nets, percent of what was measured."""
        return max(100 * abs(predicted / measured - 1) for predicted, measured in self.checks)

    def _of_part(self, name: str, widths: Widths) -> float:
        ends = []
        for place, levels in zip(self.parts[name], self.levels[name], strict=True):
            width = self.groups[place].width(widths)
            high = next(level for level in levels if level >= width)
            low = max((level for level in levels if level <= width), default=high)
            share = (width - low) / (high - low) if high > low else 1.0
            ends.append([(high, share), (low, 1 - share)])
        corners = ((tuple(w for w, _ in corner), np.prod([s for _, s in corner])) for corner in product(*ends))
        return float(sum(share * self.times[key_of(name, at)] for at, share in corners if share))


def key_of(part: str, widths: Iterable[int]) -> str:
    """The name of an entry of the table."""
    return f"{part} {'x'.join(map(str, widths))}"


def parts_of(net: Any, groups: Sequence[Group]) -> dict[str, tuple[int, ...]]:
    """The parts of a net, from the image on, and the groups that each depends on."""
    backbone = net.config.backbone
    blocks = len(net.backbone.blocks)
    places = {"stem": [0]} | {f"block {i + 1}": [2 * i, 2 * i + 1, 2 * i + 2] for i in range(blocks)}
    if backbone.last:
        places["closing"] = [2 * blocks, 2 * blocks + 1]
    taps = [2 * layer - (at != "") for layer, at in net.backbone.taps]
    places["head"] = [*taps, 2 * blocks + backbone.last]
    at = {place: number for number, group in enumerate(groups) for place in group.places}
    return {name: tuple(dict.fromkeys(at[place] for place in own)) for name, own in places.items()}


class Meter:
    """Measures nets, and parts of them, of one kind at one size in one runtime.

    Attributes:
        clock: with one thread the CPU time of this process, which other programs disturb less; else the time of day.
    """

    def __init__(self, model: Any, size: tuple[int, int], runtime: Runtime, threads: int, share: float) -> None:
        self.net, self.classes = model.config, model.num_classes
        self.size, self.runtime, self.threads, self.share = size, runtime, threads, share
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.full = exact_widths(self.net.backbone)
        self.groups = groups_of(self.net.backbone)
        self.parts = parts_of(model, self.groups)

    @property
    def facts(self) -> dict[str, Any]:
        """What a table is for."""
        machine = {"cpu": cpu_name(), "flags": cpu_flags(), "packages": versions()}
        how = {"runtime": self.runtime, "size": list(self.size), "threads": self.threads, "share": self.share}
        settings = to_dict(self.net) | {"pretrained": None, "bn_momentum": None}
        return how | machine | {"net": settings, "classes": self.classes}

    def table(self, progress: Progress, *, ready: Call) -> Table:
        """The table of this machine: from the cache, or measured, which goes on where it was stopped.

        Args:
            progress: is told what is measured.
            ready: called before anything is measured.
        """
        levels = {name: [self._levels(place, len(own)) for place in own] for name, own in self.parts.items()}
        table = Table(self.groups, self.parts, levels)
        wanted = {key_of(name, at): (name, at) for name in self.parts for at in product(*levels[name])}
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:32]
        file = cache_folder() / "fit" / f"{digest}.json"
        with suppress(ValueError, KeyError):  # a cache that cannot be read is made again
            table.times = typed(typed(read_json(file), dict)["times"], dict[str, float])
        missing = [key for key in wanted if key not in table.times]
        if missing:
            ready()
        for done, key in enumerate(missing, 1):
            table.times[key] = self._part(*wanted[key])
            progress("latency table", done, len(missing))
            if done % 10 == 0 or done == len(missing):
                with suppress(OutputError, ResourceError):  # all is measured again the next time
                    make_folder(file.parent)
                    write_json(file, {"facts": self.facts, "times": table.times}, indent=1)
        self._hold_against_whole_nets(table, progress)
        return table

    def least(self) -> Widths:
        """The widths of the narrowest net."""
        widths = self.full
        for group in self.groups:
            if choices := group.choices(self.full, self.share):
                widths = group.narrowed(widths, choices[-1])
        return widths

    def _levels(self, place: int, count: int) -> list[int]:
        full, choices = self.groups[place].width(self.full), self.groups[place].choices(self.full, self.share)
        middle = [choices[len(choices) // 2]] if len(choices) > 2 and count < 3 else []
        return sorted({full, *choices[-1:], *middle})

    def _hold_against_whole_nets(self, table: Table, progress: Progress) -> None:
        """Adjust the table to some whole nets, the widest and the narrowest among them, and compare it with others."""
        draw, mixed = random.Random(0), []
        for _ in range(2 * _CHECKED):
            widths = self.full
            for group in self.groups:
                width = draw.choice([group.width(self.full), *group.choices(self.full, self.share)])
                widths = group.narrowed(widths, width)
            mixed.append(widths)
        nets = [self.full, self.least(), *mixed]
        progress("whole nets", 0, 1)
        found = self.compare([build(with_widths(self.net, widths), self.classes).eval() for widths in nets])
        progress("whole nets", 1, 1)
        measured, known = [statistics.median(each) for each in found], len(nets) - _CHECKED
        sums = [table.summed(widths) for widths in nets]
        if max(sums[:known]) > min(sums[:known]):
            table.factor, table.offset = (float(each) for each in np.polyfit(sums[:known], measured[:known], 1))
        table.checks = [(table.predict(widths), each) for widths, each in zip(nets, measured, strict=True)][known:]

    def compare(self, models: Sequence[Any]) -> list[tuple[float, ...]]:
        """Milliseconds of each call of whole nets, from pixels to the net's own output, in turns."""
        picture = np.random.default_rng(0).integers(0, 255, (1, *self.size, 3), np.uint8)
        with scratch_folder() as folder:
            calls = {i: partial(self._whole(model, folder / str(i)), picture) for i, model in enumerate(models)}
            found = in_turns({i: partial(self._timed, call) for i, call in calls.items()}, _CALLS, budget=1.0)
        return [tuple(found[i]) for i in range(len(models))]

    def _whole(self, model: Any, folder: Path) -> Callable[[Any], object]:
        if self.runtime == "torch":
            return TorchBackend(model, device=torch.device("cpu")).run
        target = find_target("openvino" if self.runtime == "openvino" else "onnx")
        output: Output = "low-logits" if isinstance(model, Segmenter) else "class-logits"
        known = numbered_classes(self.classes)
        colors = known.colors if isinstance(model, Segmenter) else ()
        metadata = describe(model, Card(known.names, colors), output, self.size, source="", precision="fp32")
        folder.mkdir()
        target.write(model, metadata, folder / f"net{target.suffix}")
        return open_file(target, folder / f"net{target.suffix}", metadata, "fp32", self.threads, self.runtime).run

    def _part(self, name: str, at: Sequence[int]) -> float:
        """The least time of a part with these widths of its groups, milliseconds."""
        widths = self.full
        for place, width in zip(self.parts[name], at, strict=True):
            widths = self.groups[place].narrowed(widths, width)
        part, shapes = _part_of(with_widths(self.net, widths), self.classes, name, self.size)
        draw = torch.Generator().manual_seed(0)
        call = _runner(part, [torch.rand(shape, generator=draw) for shape in shapes], self.runtime, self.threads)
        return min(in_turns({"": partial(self._timed, call)}, _REPEAT, budget=_SECONDS)[""])

    def _timed(self, call: Call) -> float:
        began = self.clock()
        call()
        return 1000 * (self.clock() - began)


class _Output(nn.Module):
    """A block without its expanded map."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)[1]


class _Given(nn.Module):
    """Stands for the backbone of a net that gets the deep map itself."""

    def forward(self, deep: Tensor) -> tuple[Tensor]:
        return (deep,)


def _part_of(net: Any, classes: int, name: str, size: tuple[int, int]) -> tuple[nn.Module, list[torch.Size]]:
    """A part of a folded net with random weights, and the shapes of its inputs."""
    with torch.device("meta"):
        fresh: Any = build(net, classes)
        model: Any = folded(fresh)
    backbone: MobileNetV3Backbone = model.backbone
    maps: dict[str, list[torch.Size]] = {"stem": [torch.Size((1, 3, *size))]}
    watched = {f"block {i}": block for i, block in enumerate(backbone.blocks, 1)} | {"closing": backbone.last}
    for part, module in watched.items():
        module.register_forward_pre_hook(lambda _, given, part=part: maps.update({part: [given[0].shape]}))
    image = torch.empty(1, 3, *size, device="meta")
    maps["head"] = [each.shape for each in backbone(model.normalize(image))]
    for module in watched.values():
        module._forward_pre_hooks.clear()
    parts = {part: _Output(module) if part != "closing" else module for part, module in watched.items()}
    parts["stem"] = nn.Sequential(model.normalize, backbone.stem)
    if isinstance(model, ImageClassifier):
        model.normalize, model.backbone = cast(Any, nn.Identity()), cast(Any, _Given())
    parts["head"] = model if isinstance(model, ImageClassifier) else model.head
    chosen = parts[name].to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*chosen.parameters(), *chosen.buffers()):
            tensor.normal_(0, 0.05)  # what an unwritten memory holds may be slow to calculate with
    return chosen, maps[name]


def _runner(part: nn.Module, inputs: list[Tensor], runtime: Runtime, threads: int) -> Call:
    """A part in its runtime, ready to be called."""
    if runtime == "torch":
        part = part.to(memory_format=torch.channels_last)
        inputs = [each.contiguous(memory_format=torch.channels_last) for each in inputs]
        return torch.inference_mode()(lambda: part(*inputs))
    with silence(), torch.inference_mode():
        if runtime == "openvino":
            inputs = [each.permute(0, 2, 3, 1).contiguous() for each in inputs]
            return _in_openvino(torch.jit.trace(_ChannelsLast(part), tuple(inputs), check_trace=False), inputs, threads)
        return _in_onnxruntime(part, inputs, threads)


class _ChannelsLast(nn.Module):
    """A part between maps N x H x W x C, as OpenVINO keeps them: reordering them would cost more than the part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *maps: Tensor) -> Tensor:
        found = self.part(*(each.permute(0, 3, 1, 2) for each in maps))
        return found.permute(0, 2, 3, 1) if found.ndim == 4 else found


def _in_openvino(traced: Any, inputs: list[Tensor], threads: int) -> Call:
    openvino = import_openvino()
    converted = openvino.convert_model(traced, input=[openvino.PartialShape(list(each.shape)) for each in inputs])
    request = openvino_core().compile_model(converted, "CPU", cpu_settings("fp32", threads)).create_infer_request()
    for place, each in enumerate(inputs):
        request.set_input_tensor(place, openvino.Tensor(each.numpy()))
    return cast(Call, request.infer)


def _in_onnxruntime(part: nn.Module, inputs: list[Tensor], threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    names = [f"map{place}" for place in range(len(inputs))]
    with scratch_folder() as folder:
        torch.onnx.export(
            part, tuple(inputs), folder / "part.onnx", dynamo=False, opset_version=OPSET, input_names=names
        )
        session = onnxruntime.InferenceSession(folder / "part.onnx", options, providers=["CPUExecutionProvider"])
    feeds = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    return partial(session.run, None, feeds)

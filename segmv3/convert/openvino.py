"""OpenVINO: a net as an IR model, which is two files by its nature, FILE.xml (the graph) and FILE.bin (the weights)."""

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

import torch

from segmv3.convert.base import Arithmetic, Run, Say, Target, cannot, sums_fit
from segmv3.convert.extras import import_openvino, openvino_core, scratch_folder, silence
from segmv3.convert.graph import INPUT, Graph, Net, example
from segmv3.convert.metadata import KEY, Metadata, from_text
from segmv3.errors import CheckpointError
from segmv3.files import write_bytes
from segmv3.images import UInt8Array
from segmv3.pipeline import AT_ONCE

if TYPE_CHECKING:
    import openvino

_LARGEST_XML = 100_000_000


@dataclass(frozen=True)
class OpenVino(Target):
    """Two files for OpenVINO."""

    name: ClassVar[str] = "openvino"
    classifiers: ClassVar[bool] = True
    suffix: ClassVar[str] = ".xml"
    needs: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "export"
    runtimes: ClassVar[tuple[str, ...]] = ("openvino",)

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, path.with_suffix(".bin"))

    def write(
        self, model: Net, metadata: Metadata, path: Path, images: Sequence[UInt8Array] = (), say: Say = print
    ) -> None:
        write(to_openvino(model, metadata), path)

    def read(self, path: Path) -> Metadata:
        """As `Target.read`, without OpenVINO.

        Raises:
            CheckpointError: the weights are missing, or it is no export of segmv3.
        """
        if not path.with_suffix(".bin").is_file():
            raise CheckpointError(f"{path} has no {path.stem}.bin beside it; an OpenVINO model is both files")
        data = path.read_bytes() if path.stat().st_size < _LARGEST_XML else b""
        try:
            if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # no IR has any, and they can make a small file huge
                raise ElementTree.ParseError("it declares entities")
            element = ElementTree.fromstring(data).find(f"rt_info/{KEY}")
        except ElementTree.ParseError as error:
            raise CheckpointError(f"{path} is no OpenVINO model ({error})") from None
        return from_text(None if element is None else element.get("value", ""), path)

    def open(self, path: Path, metadata: Metadata, runtime: str, precision: Arithmetic, threads: int) -> Run:
        return open_openvino(path, precision, threads)

    def is_safe(self, path: Path) -> bool:
        operations = openvino_core().read_model(path).get_ops()
        constants = [operation for operation in operations if operation.get_type_name() == "Constant"]
        return sums_fit(one.data for one in constants if one.get_element_type().to_string() == "i8")


class _Nets:
    """A model, compiled for those who call it.

    A single caller has a net of one stream, in which it is faster by a sixth. Others share a net of several streams:
    each has threads of its own there, while in one stream all would wait for the same ones.
    """

    def __init__(self, compiled: Callable[[int], Any], several: int) -> None:
        self._compiled, self._several = cache(compiled), several
        self._one = self._compiled(1)
        self._free = [self._one]  # empty while it has a caller whose thread did not end
        self._lock = threading.Lock()
        self._process = os.getpid()

    def request(self) -> Any:
        """For one thread."""
        if os.getpid() != self._process:  # a fork takes no threads along, and one stream alone needs none of its own
            return self._one.create_infer_request()
        with self._lock:
            net = self._free.pop() if self._free else self._compiled(self._several)
            request = net.create_infer_request()
        if net is self._one:
            weakref.finalize(request, self._free.append, net)
        return request


class _Own(threading.local):
    """The requests of one thread, by process: a request is for one caller at a time."""

    def __init__(self) -> None:
        self.requests: dict[int, Any] = {}


def open_openvino(path: Path, precision: Arithmetic, threads: int) -> Run:
    """A file in OpenVINO on the CPU.

    Raises:
        CheckpointError: it cannot be opened.
    """
    openvino, own = import_openvino(), _Own()
    several = max(1, min((os.cpu_count() or 1) // threads, AT_ONCE))
    try:  # kept in memory: when another caller comes, the file may be gone or another one
        model = openvino_core().read_model(path)
    except RuntimeError as error:
        raise cannot("open", path, "OpenVINO", error) from None

    def compiled(streams: int) -> Any:
        shared = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads * streams}
        try:
            return openvino_core().compile_model(model, "CPU", cpu_settings(precision, threads) | shared)
        except RuntimeError as error:
            raise cannot("open", path, "OpenVINO", error) from None

    nets = _Nets(compiled, several)

    def run(images: UInt8Array) -> Any:
        process = os.getpid()
        if process not in own.requests:
            own.requests[process] = nets.request()
        request = own.requests[process]
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as error:
            raise cannot("run", path, "OpenVINO", error) from None
        return request.get_output_tensor().data  # the request's own memory, until this thread's next call

    return run


def cpu_settings(precision: Arithmetic, threads: int) -> dict[str, Any]:
    """What OpenVINO is told of a net on the CPU."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Always said: left alone, OpenVINO takes bf16 by itself on some CPUs.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }


def to_openvino(model: Net, metadata: Metadata) -> "openvino.Model":
    """Convert a net.

    Args:
        model: the net.
        metadata: says which output and size; its text is kept in the model's rt_info.

    Raises:
        ModelError: openvino is not installed.
    """
    openvino = import_openvino()
    with silence(), torch.inference_mode():
        # traced here, once and on a small image: convert_model would trace three times
        traced = torch.jit.trace(Graph(model, metadata.output), example(metadata.size), check_trace=False)
        height, width = metadata.size or (-1, -1)
        shape = openvino.PartialShape([1 if metadata.size else -1, height, width, 3])
        converted = openvino.convert_model(traced, input=shape)
    converted.inputs[0].get_tensor().set_names({INPUT})
    converted.outputs[0].get_tensor().set_names({metadata.output.replace("-", "_")})
    return with_metadata(converted, metadata)


def with_metadata(model: "openvino.Model", metadata: Metadata) -> "openvino.Model":
    """Put the metadata into a model. Do it last: quantisers may lose it."""
    model.set_rt_info(metadata.to_text(), [KEY])
    return model


def write(model: "openvino.Model", path: Path) -> None:
    """Write FILE.bin, then FILE.xml beside it: whoever finds an .xml finds its weights too.

    Raises: OutputError or ResourceError naming the file that cannot be written.
    """
    with scratch_folder() as folder:
        import_openvino().save_model(model, folder / "model.xml", compress_to_fp16=False)
        graph, weights = (folder / "model.xml").read_bytes(), (folder / "model.bin").read_bytes()
    write_bytes(path.with_suffix(".bin"), weights)
    write_bytes(path, graph)

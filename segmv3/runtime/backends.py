"""One class per runtime: uint8 images in, what the net or the exported file puts out.

All of them can be called from several threads. `segmv3.runtime.loading` decides which one is used.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmv3.convert.extras import import_openvino, openvino_core
from segmv3.convert.graph import Output
from segmv3.errors import CheckpointError, ModelError
from segmv3.images import UInt8Array
from segmv3.models.bands import features_in_bands
from segmv3.models.fold import folded
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.segmenter import Segmenter
from segmv3.runtime.device import is_forked, refuse_forked_gpu
from segmv3.runtime.machine import has_bf16

if TYPE_CHECKING:
    import openvino

BackendName = Literal["torch", "onnxruntime", "openvino"]
Arithmetic = Literal["fp32", "bf16", "fp16", "int8"]
Size = tuple[int, int]

_SIZES_KEPT = 4
"""Image sizes whose graphs are kept: those of a video, a folder and a test beside them."""

_LARGE = 16_000_000
"""Pixels of a batch beyond which a CPU saves memory instead of time: twice those of a 4K picture."""


class Backend(Protocol):
    """A net that is ready to run.

    Attributes: name: the runtime. precision: its arithmetic. output: what `run` returns. size: the only (height,
        width) it takes, None for any. device: "cpu" or "cuda". threads: CPU threads.
    """

    @property
    def name(self) -> BackendName: ...
    @property
    def precision(self) -> Arithmetic: ...
    @property
    def output(self) -> Output: ...
    @property
    def size(self) -> Size | None: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...

    def run(self, images: UInt8Array) -> Tensor | NDArray[Any]:
        """Run the net.

        Args: images: uint8 N x H x W x 3, RGB, C-contiguous and writable.
        Returns: low logits or logits, float N x C x h x w, or labels, uint8 N x H x W, as `output` says.
        Raises: ModelError for a size that it does not take.
        """
        ...


def refuse_precision(precision: Arithmetic, device: str) -> None:
    """Raises: ModelError for arithmetic that a device lacks."""
    if device == "cuda" or precision in ("fp32", "int8"):
        return
    if precision == "fp16" or not has_bf16():
        known = "fp32 and bf16" if has_bf16() else "fp32"
        raise ModelError(f"this CPU does not calculate in {precision}; it has {known}")


class TorchBackend:
    """PyTorch, channels last, its normalisations folded.

    On a GPU every image size is captured once as a CUDA graph: launching the many small kernels of this net one by
    one takes longer than running them.

    Args: fold: False runs the net as it was trained, the reference of every proof. compile: let `torch.compile` fuse
        the net, which takes a minute for every new image size.
    """

    name: BackendName = "torch"
    output: Output = "low-logits"
    size: Size | None = None

    def __init__(
        self,
        model: Segmenter,
        *,
        device: torch.device,
        precision: Arithmetic = "fp32",
        fold: bool = True,
        compile: bool = False,
    ) -> None:
        if precision == "int8":
            raise ModelError("torch runs no int8 here; use segmv3 export WEIGHTS --to openvino-int8 or onnx-int8")
        refuse_precision(precision, device.type)
        self.precision = precision
        self.device = device.type
        self._device = device
        net = folded(model) if fold else model.eval()
        self._net = net.to(device).to(memory_format=torch.channels_last)
        self._low_logits: Callable[[Tensor], Tensor] = self._net.low_logits
        if compile:
            self._low_logits = torch.compile(self._net.low_logits)
        self._graphs: OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()  # a CUDA graph has one input and one output

    @property
    def threads(self) -> int:
        return torch.get_num_threads()  # of the process, whoever sets it

    def run(self, images: UInt8Array) -> Tensor:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.inference_mode():
            if self.device == "cpu":
                return self._calculate(pixels)
            refuse_forked_gpu()
            with self._lock:
                return self._replay(pixels).clone()

    def _calculate(self, pixels: Tensor) -> Tensor:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device, dtype, enabled=self.precision != "fp32"):
            # a compiled net asks for its threads by number, and a forked process has none of them
            if self.device == "cpu" and is_large(pixels.shape[0], *pixels.shape[2:]):
                return self._calculate_in_bands(pixels)
            calculate = self._net.low_logits if is_forked() else self._low_logits
            return calculate(pixels).float()

    def _calculate_in_bands(self, pixels: Tensor) -> Tensor:
        net = self._net
        if not isinstance(net.backbone, MobileNetV3Backbone):
            return net.low_logits(pixels).float()
        return net.head(*features_in_bands(net.normalize, net.backbone, pixels)).float()

    def _replay(self, pixels: Tensor) -> Tensor:
        key = tuple(pixels.shape)
        if key not in self._graphs:
            self._graphs[key] = self._capture(pixels.to(self._device))
            if len(self._graphs) > _SIZES_KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        graph, taken, given = self._graphs[key]
        taken.copy_(pixels)
        graph.replay()
        return given

    def _capture(self, pixels: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels on the first calls, outside of the capture
            for _ in range(3):
                self._calculate(pixels)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            given = self._calculate(pixels)
        return graph, pixels, given


class TorchExportBackend:
    """A program that `torch.export` saved."""

    name: BackendName = "torch"
    precision: Arithmetic = "fp32"
    device = "cpu"

    def __init__(self, path: Path, *, output: Output, size: Size | None) -> None:
        self.output = output
        self.size = size
        self.threads = torch.get_num_threads()
        self._path = path
        self._module = torch.export.load(path).module()

    def run(self, images: UInt8Array) -> Tensor:
        _refuse_size(self, images, self._path)
        pixels = torch.from_numpy(images)
        try:
            with torch.inference_mode():
                return torch.cat([self._module(part) for part in _parts(self, pixels)])
        except AssertionError:  # a condition of the program, as torch.export puts it
            height, width = images.shape[1:3]
            raise ModelError(f"{self._path} takes larger images than {height}x{width}") from None


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU.

    Args: source: an ONNX file, or what it would hold.
    """

    name: BackendName = "onnxruntime"
    device = "cpu"

    def __init__(
        self, source: Path | bytes, *, output: Output, size: Size | None, precision: Arithmetic, threads: int
    ) -> None:
        import onnxruntime

        self.output = output
        self.size = size
        self.precision = precision
        self.threads = threads
        self._path = source if isinstance(source, Path) else None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings are about its own optimiser
        try:
            self._session = onnxruntime.InferenceSession(
                str(source) if isinstance(source, Path) else source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base class
            raise _cannot("open", self._path, "ONNX Runtime", error) from None

    def run(self, images: UInt8Array) -> NDArray[Any]:
        _refuse_size(self, images, self._path)
        try:
            found = [self._session.run(None, {"image": part})[0] for part in _parts(self, images)]
        except Exception as error:  # as above; a file that is not what it says of itself
            raise _cannot("run", self._path, "ONNX Runtime", error) from None
        return found[0] if len(found) == 1 else np.concatenate(found)


class OpenVinoBackend:
    """OpenVINO on the CPU."""

    name: BackendName = "openvino"
    device = "cpu"

    def __init__(
        self,
        model: "openvino.Model | Path",
        *,
        output: Output,
        size: Size | None,
        precision: Arithmetic,
        threads: int,
    ) -> None:
        refuse_precision(precision, "cpu")
        self.output = output
        self.size = size
        self.precision = precision
        self.threads = threads
        self._path = model if isinstance(model, Path) else None
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Always said: left alone, OpenVINO takes bf16 by itself on some CPUs.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        try:
            self._compiled = openvino_core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise _cannot("open", self._path, "OpenVINO", error) from None
        self._own = threading.local()  # a request is for one caller at a time

    def run(self, images: UInt8Array) -> NDArray[Any]:
        openvino = import_openvino()

        _refuse_size(self, images, self._path)
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        request, found = self._own.request, []
        for part in _parts(self, images):
            request.set_input_tensor(openvino.Tensor(part, shared_memory=True))
            try:
                request.infer()
            except RuntimeError as error:
                raise _cannot("run", self._path, "OpenVINO", error) from None
            found.append(request.get_output_tensor().data)  # the request's own memory, until this thread's next call
            if len(part) < len(images):
                found[-1] = found[-1].copy()
        return found[0] if len(found) == 1 else np.concatenate(found)


class BySize:
    """A converted net: a backend for each of the first image sizes, or one for all, and PyTorch for the rest.

    PyTorch also takes what is large: it alone can work in bands.

    Args: open_size: from (height, width), or None for any, to a backend; slow, so not for every picture of a mixed
        folder. first: a size to begin with. fixed: whether the net converts at a fixed size only. others: PyTorch.
    """

    size: Size | None = None

    def __init__(
        self, open_size: Callable[[Size | None], Backend], first: Size, *, fixed: bool, others: TorchBackend
    ) -> None:
        self._open = open_size
        self._fixed = fixed
        self._others = others
        self._lock = threading.Lock()
        backend = self._open(self._key(first))
        self._backends = {self._key(first): backend}
        self.name, self.precision, self.output = backend.name, backend.precision, backend.output
        self.device, self.threads = backend.device, backend.threads

    def _key(self, size: Size) -> Size | None:
        return size if self._fixed else None

    def run(self, images: UInt8Array) -> Tensor | NDArray[Any]:
        if is_large(*images.shape[:3]):
            return self._others.run(images)
        key = self._key((images.shape[1], images.shape[2]))
        with self._lock:
            if key not in self._backends and len(self._backends) < _SIZES_KEPT:
                self._backends[key] = self._open(key)
            backend = self._backends.get(key, self._others)
        return backend.run(images)


def is_large(images: int, height: int, width: int) -> bool:
    """Whether a batch has more pixels than the maps of a net should take memory for at once."""
    return images * height * width > _LARGE


def _parts(backend: Backend, images: Any) -> list[Any]:
    """A batch as a backend takes it: what has a fixed size has a batch of one."""
    return [images] if backend.size is None else [images[i : i + 1] for i in range(len(images))]


def _refuse_size(backend: Backend, images: UInt8Array, path: Path | None) -> None:
    height, width = images.shape[1:3]
    if backend.size and backend.size != (height, width):
        only = f"{backend.size[0]}x{backend.size[1]}"
        raise ModelError(
            f"{path or 'this net'} takes images of {only} (height x width) only, this one is {height}x{width}; "
            f"resize it, or export again with --size {height} {width}"
        )


def _cannot(do: str, path: Path | None, runtime: str, error: Exception) -> CheckpointError:
    """With the last line of a runtime's message; those before it are places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1][:200] if lines else type(error).__name__
    return CheckpointError(f"{runtime} cannot {do} {path or 'the net'} ({reason}); export it again")

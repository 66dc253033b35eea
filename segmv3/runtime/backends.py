"""A net that is ready to run: uint8 images in, what the net puts out. Exported files: `segmv3.convert.base`.

All backends can be called from several threads. `segmv3.runtime.loading` decides which one is used.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from segmv3.checkpoint import Card
from segmv3.convert.base import Arithmetic as Arithmetic
from segmv3.convert.base import Size as Size
from segmv3.convert.graph import Net, Output
from segmv3.errors import ModelError
from segmv3.images import UInt8Array
from segmv3.models.bands import features_in_bands
from segmv3.models.fold import folded
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.segmenter import Segmenter
from segmv3.runtime.device import is_forked, refuse_forked_gpu
from segmv3.runtime.machine import has_bf16

BackendName = Literal["torch", "onnxruntime", "openvino"]

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
    def name(self) -> str: ...
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

        Args:
            images: uint8 N x H x W x 3, RGB, C-contiguous and writable.

        Returns:
            Low logits or logits, float N x C x h x w; labels, uint8 N x H x W; or class logits, float N x C.

        Raises:
            ModelError: the backend does not take this size.
        """
        ...


class OnBackend:
    """What an opened net tells of the `Backend` that runs it.

    Attributes:
        card: what the weight file says of itself.
    """

    def __init__(self, backend: Backend, card: Card) -> None:
        self._backend = backend
        self.card = card

    @property
    def backend(self) -> str:
        """The runtime: torch, onnxruntime or openvino."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """Arithmetic of the net: fp32, bf16, fp16 or int8."""
        return self._backend.precision

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return self._backend.device


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

    Args:
        fold: False runs the net as it was trained, the reference of every proof.
        compile: let `torch.compile` fuse the net, which takes a minute for every new image size.
    """

    name: BackendName = "torch"
    size: Size | None = None

    def __init__(
        self,
        model: Net,
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
        self.output: Output = "low-logits" if isinstance(net, Segmenter) else "class-logits"
        self._plain: Callable[[Tensor], Tensor] = net.low_logits if isinstance(net, Segmenter) else net
        self._low_logits = torch.compile(self._plain) if compile else self._plain
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
            calculate = self._plain if is_forked() else self._low_logits
            return calculate(pixels).float()

    def _calculate_in_bands(self, pixels: Tensor) -> Tensor:
        net = self._net
        if not isinstance(net, Segmenter) or not isinstance(net.backbone, MobileNetV3Backbone):
            return self._plain(pixels).float()
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


class BySize:
    """A converted net: a backend for each of the first image sizes, or one for all, and PyTorch for the rest.

    PyTorch also takes what is large: it alone can work in bands.

    Args:
        open_size: makes a backend for (height, width), or for None, any size. It is slow, so not for every picture of a
            mixed folder.
        first: a size to begin with.
        fixed: whether the net converts at a fixed size only.
        others: PyTorch.
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

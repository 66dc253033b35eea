"""Nets to be timed: trained weights as users open them, or fresh weights whose activations are as large."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from segmv3.benchmark.pictures import Size, resized
from segmv3.checkpoint import Card
from segmv3.config import AnyBackend, AnyPrecision, Model
from segmv3.convert.base import open_file
from segmv3.convert.graph import needs_fixed_size
from segmv3.convert.metadata import describe
from segmv3.convert.targets import find_target
from segmv3.errors import ModelError
from segmv3.images import UInt8Array
from segmv3.labels import cityscapes_classes
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_model
from segmv3.runtime import Predictor, use_device
from segmv3.runtime.backends import Arithmetic, BackendName, TorchBackend, refuse_precision
from segmv3.runtime.loading import installed, load
from segmv3.runtime.machine import has_bf16

CLASSES = 19

Net = TypeVar("Net", bound=nn.Module)

_SETTLING: Size = (448, 896)  # mmsegmentation's pooling window needs 392 rows and columns


@dataclass(frozen=True)
class Place:
    """The device and threads of a run. The process that measures memory uses the same."""

    device: Literal["cpu", "cuda"]
    threads: int
    folder: Path
    """Folder for converted nets, empty at first."""
    trust: bool = False
    """Open exported files that can do harm, as in `segmv3.load`."""

    def use(self) -> torch.device:
        return use_device(self.device, self.threads)


def settling(picture: UInt8Array) -> Tensor:
    """A small batch for `settle`: float N x 3 x H x W, 0..255."""
    size = tuple(min(side, most) for side, most in zip(picture.shape[:2], _SETTLING, strict=True))
    small = torch.from_numpy(resized(picture, (size[0], size[1]))).permute(2, 0, 1).float()
    return torch.stack([small, 255 - small])  # two pictures, since pooled layers have one value for each


def settle(net: Net, images: Tensor) -> Net:
    """Give a net with fresh weights the activations of a trained one: batch normalisation measured on pictures.

    Without it values shrink from layer to layer until every pixel has the same label, which is cheaper than a street.

    Args:
        net: the net, with fresh weights.
        images: N x 3 x H x W, as the net takes them.

    Returns:
        The net, in eval mode.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def fresh(net: Model, picture: UInt8Array) -> Segmenter:
    """A net with fresh weights, the same in every run, settled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(create_model(net, CLASSES), settling(picture))


def open_weights(source: str, backend: AnyBackend, precision: AnyPrecision, place: Place) -> Predictor:
    """Trained weights or an export, as `segmv3.load` opens them.

    Raises: what `segmv3.load` raises.
    """
    on_cpu = place.device if backend in ("auto", "torch") else "cpu"
    return load(source, backend=backend, precision=precision, threads=place.threads, device=on_cpu, trust=place.trust)


def open_fresh(
    net: Model, picture: UInt8Array, backend: AnyBackend, precision: AnyPrecision, place: Place
) -> Predictor:
    """A net with fresh weights in a runtime, without the proof that `segmv3.load` asks for: its labels mean nothing.

    Args:
        picture: uint8 H x W x 3, of the size that the net will be used at.
        backend: "auto" is OpenVINO on a CPU where it is installed, then ONNX Runtime, then torch.
        precision: "auto" is bf16 where that is faster, fp16 on a GPU.

    Raises:
        ModelError: the backend is not installed, or the precision is missing here.
    """
    device = place.use()
    name, arithmetic = chosen(backend, precision, place)
    classes = cityscapes_classes()
    card = Card(classes.names, classes.colors)
    if name == "torch":
        return Predictor(TorchBackend(fresh(net, picture), device=device, precision=arithmetic), card)
    with torch.device("meta"):
        empty = create_model(net, CLASSES)
    size = (picture.shape[0], picture.shape[1]) if needs_fixed_size(empty) else None
    target = find_target("openvino" if name == "openvino" else "onnx")
    key = hashlib.sha256(f"{net} {size}".encode()).hexdigest()[:16]
    path = place.folder / f"{key}{target.suffix}"
    metadata = describe(empty, card, "low-logits", size, source="", precision="fp32")
    if not path.exists():  # the process that measures memory finds it, as a user of an export would
        target.write(fresh(net, picture), metadata, path)
    return Predictor(open_file(target, path, metadata, arithmetic, place.threads), card)


def chosen(backend: AnyBackend, precision: AnyPrecision, place: Place) -> tuple[BackendName, Arithmetic]:
    """The runtime and arithmetic of a net with fresh weights: "auto" decided, the rest checked.

    Raises: ModelError for what is not installed, or missing on this device.
    """
    on_gpu = place.device == "cuda"
    order: tuple[BackendName, ...] = ("torch",) if on_gpu else ("openvino", "onnxruntime", "torch")
    name: BackendName = next(one for one in order if installed(one)) if backend == "auto" else backend
    if not installed(name):
        raise ModelError(f'the {name} backend is not installed; pip install "segmv3[export]"')
    if on_gpu and name != "torch":
        raise ModelError(f"{name} runs on the CPU here; leave --device cuda out, or use --backend torch")
    if precision == "auto":
        return name, "fp16" if on_gpu else "bf16" if name == "openvino" and has_bf16() else "fp32"
    refuse_precision(precision, place.device)
    if precision == "int8" or (precision != "fp32" and name == "onnxruntime"):
        raise ModelError(f"a net with fresh weights does not run in {precision} by {name}; choose fp32 or bf16")
    return name, precision

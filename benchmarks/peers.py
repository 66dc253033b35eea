"""How long other projects take from an image to its labels, in the same process and by turns with segmv3.

All get the same picture, uint8 H x W x 3, and give labels, uint8 H x W, 19 classes. All have fresh weights, which
changes no multiplication. Ours and torchvision's are of the same cost; mmsegmentation's net dilates more; the others
are what segmentation-models-pytorch (smp) makes of a backbone of this class.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.benchmark.memory import Peak, peak_memory
from segmv3.benchmark.nets import (
    CLASSES,
    Place,
    fresh,
    open_fresh,
    open_weights,
    settle,
    settling,
)
from segmv3.benchmark.timing import Progress, Times, time_in_turns
from segmv3.config import AnyBackend, AnyPrecision
from segmv3.errors import NumericsError, Segmv3Error
from segmv3.images import UInt8Array
from segmv3.models.zoo import NETS

Label = Callable[[UInt8Array], UInt8Array]
"""uint8 H x W x 3, RGB -> labels, uint8 H x W."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes: open: from the picture that it will be used on, and where, to a function. Raises: anything at all when
        it cannot be used. package: whose version is stated.
    """

    name: str
    package: str
    open: Callable[[UInt8Array, Place], Label]
    arithmetic: str = "fp32"
    group: Literal["ours", "our runtime", "peer"] = "peer"


# --- ours ---


def _flagship(
    picture: UInt8Array, place: Place, *, weights: str | None, backend: AnyBackend, precision: AnyPrecision
) -> Label:
    if weights:
        return open_weights(weights, backend, precision, place)
    return open_fresh(NETS["lraspp_large_d8"], picture, backend, precision, place)


def _same_net(picture: UInt8Array, place: Place, *, backend: AnyBackend, precision: AnyPrecision) -> Label:
    return open_fresh(NETS["lraspp_large_d8_mmseg"], picture, backend, precision, place)


# --- eager PyTorch, as each project's own documentation uses it ---

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _normalized(pixels: Tensor) -> Tensor:
    """N x 3 x H x W, 0..255 -> as nets trained on ImageNet want it; what torchvision's transforms do."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (pixels.float() / 255 - mean) / std


def _eager(
    net: nn.Module, picture: UInt8Array, place: Place, logits: Callable[[nn.Module, Tensor], Tensor], *, nhwc: bool
) -> Label:
    """Normalise, run, argmax."""
    device = place.use()
    net = settle(net, _normalized(settling(picture))).to(device)
    if nhwc:
        net = net.to(memory_format=torch.channels_last)

    def label(image: UInt8Array) -> UInt8Array:
        with torch.inference_mode():
            pixels = _normalized(torch.from_numpy(image).to(device).permute(2, 0, 1)[None])
            layout = torch.channels_last if nhwc else torch.contiguous_format
            found = logits(net, pixels.contiguous(memory_format=layout)).argmax(1)
            return found[0].to(torch.uint8).cpu().numpy()

    return label


def _torchvision(picture: UInt8Array, place: Place, *, nhwc: bool) -> Label:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    return _eager(net, picture, place, lambda net, x: net(x)["out"], nhwc=nhwc)


def _smp(picture: UInt8Array, place: Place, *, architecture: str, encoder: str) -> Label:
    import segmentation_models_pytorch as smp

    net = getattr(smp, architecture)(encoder, encoder_weights=None, classes=CLASSES)
    return _eager(net, picture, place, lambda net, x: net(x), nhwc=False)


def _mmsegmentation_net(picture: UInt8Array, place: Place) -> Label:
    """mmsegmentation's net as its own code runs it, without needing it: layers one by one, NCHW, full-size logits."""
    device = place.use()
    net = fresh(NETS["lraspp_large_d8_mmseg"], picture).to(device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (net.config.mean, net.config.std))

    def label(image: UInt8Array) -> UInt8Array:
        with torch.inference_mode():
            pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].contiguous().float()
            low = net.head(*net.backbone((pixels - mean) / std))
            logits = F.interpolate(low, image.shape[:2], mode="bilinear", align_corners=False)
            return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()

    return label


_MMSEGMENTATION_CONFIG = "mobilenet-v3-d8-scratch_lraspp_4xb4-320k_cityscapes-512x1024"


def _mmsegmentation(picture: UInt8Array, place: Place) -> Label:
    """The real one, by its own test_step: its preprocessor, its net, its resizing, its argmax."""
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    device = place.use()
    register_all_modules()
    hub = import_module("mmengine.hub")
    config = hub.get_config(f"mmseg::mobilenet_v3/{_MMSEGMENTATION_CONFIG}.py").model
    for part in (config.backbone, config.decode_head):
        part.norm_cfg.type = "BN"  # SyncBN is for training by several GPUs
    net = MODELS.build(config)
    settled = settling(picture)
    mean, std = net.data_preprocessor.mean.view(1, 3, 1, 1), net.data_preprocessor.std.view(1, 3, 1, 1)
    settle(net, (settled - mean) / std)
    net = net.to(device)

    def label(image: UInt8Array) -> UInt8Array:
        bgr = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        sample = SegDataSample(metainfo={"img_shape": image.shape[:2], "ori_shape": image.shape[:2]})
        with torch.no_grad():
            found = net.test_step({"inputs": [bgr], "data_samples": [sample]})
        return found[0].pred_sem_seg.data[0].to(torch.uint8).cpu().numpy()

    return label


REAL_MMSEGMENTATION = Peer("mmsegmentation M-V3-D8, test_step", "mmsegmentation", _mmsegmentation)

PEERS = (
    Peer("torchvision LR-ASPP, eager", "torchvision", partial(_torchvision, nhwc=False)),
    Peer("torchvision LR-ASPP, channels_last", "torchvision", partial(_torchvision, nhwc=True)),
    Peer("mmsegmentation M-V3-D8, eager (our copy)", "torch", _mmsegmentation_net),
    REAL_MMSEGMENTATION,
    Peer(
        "smp DeepLabV3+ MobileNetV3, eager",
        "segmentation_models_pytorch",
        partial(_smp, architecture="DeepLabV3Plus", encoder="tu-mobilenetv3_large_100"),
    ),
    Peer(
        "smp DeepLabV3+ MobileNetV2, eager",
        "segmentation_models_pytorch",
        partial(_smp, architecture="DeepLabV3Plus", encoder="mobilenet_v2"),
    ),
    Peer(
        "smp Segformer-B0, eager",
        "segmentation_models_pytorch",
        partial(_smp, architecture="Segformer", encoder="mit_b0"),
    ),
)

_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
_TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "torch": "torch"}
_ON_CPU: tuple[tuple[AnyBackend, AnyPrecision], ...] = (
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("torch", "fp32"),
)
_ON_CUDA: tuple[tuple[AnyBackend, AnyPrecision], ...] = (("torch", "fp16"), ("torch", "bf16"), ("torch", "fp32"))


def implementations(place: Place, weights: str | None = None) -> tuple[Peer, ...]:
    """Ours by every runtime, mmsegmentation's net by the same, and the peers.

    Args: weights: a flagship's file or published name, instead of fresh weights.
    """
    runtimes = _ON_CUDA if place.device == "cuda" else _ON_CPU
    ours = (
        Peer(
            f"segmv3 {'' if weights else 'lraspp_large_d8, '}{_TITLES[backend]} {precision}",
            _PACKAGES[backend],
            partial(_flagship, weights=weights, backend=backend, precision=precision),
            precision,
            "ours",
        )
        for backend, precision in runtimes
    )
    same = (
        Peer(
            f"the same M-V3-D8 net, segmv3 {_TITLES[backend]} {precision}",
            _PACKAGES[backend],
            partial(_same_net, backend=backend, precision=precision),
            precision,
            "our runtime",
        )
        for backend, precision in runtimes[:2]
    )
    return (*ours, *same, *PEERS)


# --- timing ---


@dataclass(frozen=True)
class Row:
    """What was found of one implementation at one size; no times where it cannot be used, and why in `version`."""

    peer: Peer
    size: tuple[int, int]
    version: str
    times: Times | None = None
    memory: Peak | None = None
    """Of a process that opens it and labels one image."""

    def facts(self) -> dict[str, Any]:
        """For a receipt."""
        facts: dict[str, Any] = {
            "name": self.peer.name,
            "group": self.peer.group,
            "precision": self.peer.arithmetic,
            "size": list(self.size),
            "package": self.peer.package,
            "version": self.version,
        }
        if self.times:
            facts |= self.times.facts() | {"memory_mib": self.memory.facts() if self.memory else None}
        return facts


def time_peers(
    picture: UInt8Array,
    place: Place,
    repeat: int,
    *,
    peers: Sequence[Peer],
    budget: float | None = 12.0,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> list[Row]:
    """Time all implementations on one picture, by turns; then see how much memory each takes alone.

    Args: budget: seconds for the turns of each. say: told what is being done.
    Raises: LabelsError when one gives something else than labels of the picture's size.
    """
    size = picture.shape[0], picture.shape[1]
    ready: dict[str, Label] = {}
    versions: dict[str, str] = {}
    called: dict[str, float] = {}
    for peer in peers:
        say(f"opening {peer.name}")
        try:
            label = peer.open(picture, place)
            began = time.perf_counter()
            refuse_no_labels(peer.name, label(picture), size)
            if peer.group == "peer":  # ours compile at their first call, which says nothing of the next
                called[peer.name] = time.perf_counter() - began
            versions[peer.name] = version_of(peer.package)
        except LabelsError:
            raise
        except Exception as error:  # whatever ails one, the others are measured
            versions[peer.name] = why_not(error)
        else:
            ready[peer.name] = label
    say("timing")
    calls = {name: partial(label, picture) for name, label in ready.items()}
    times = time_in_turns(calls, repeat, budget=budget, called=called, progress=progress)
    ready.clear()  # gives their memory back
    calls.clear()
    rows = []
    for peer in peers:
        measured = None
        if memory and peer.name in times:
            say(f"memory of {peer.name}")
            measured = peak_memory(partial(_label_once, peer, picture, place))
        rows.append(Row(peer, size, versions[peer.name], times.get(peer.name), measured))
    return rows


class LabelsError(NumericsError):
    """An implementation gave something else than labels."""

    area = "benchmark"


def refuse_no_labels(name: str, labels: UInt8Array, size: tuple[int, int]) -> None:
    """Raises: LabelsError unless these are labels of a picture of that size."""
    if labels.dtype != np.uint8 or labels.shape != size or labels.max() >= CLASSES:
        raise LabelsError(f"{name} gave {labels.dtype} {labels.shape}, not labels of {size[0]}x{size[1]}")


def ratios(rows: Sequence[Row]) -> Mapping[str, float]:
    """The medians that others are divided by: of our best, "best", and of our best in fp32, "fp32"."""
    ours = [row for row in rows if row.peer.group == "ours" and row.times]
    best = {"best": ours, "fp32": [row for row in ours if row.peer.arithmetic == "fp32"]}
    return {key: min(row.times.median for row in some if row.times) for key, some in best.items() if some}


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def why_not(error: Exception) -> str:
    """Why an implementation was not measured, in a few words."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error.name})"
    reason = error.args[0] if isinstance(error, Segmv3Error) and error.args else error
    return f"cannot be used ({' '.join(str(reason).split())[:120]})"


def _label_once(peer: Peer, picture: UInt8Array, place: Place) -> None:
    peer.open(picture, place)(picture)

"""Running a trained net on images, behind one callable."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from segmv3.checkpoint import Card
from segmv3.config import Device, Precision
from segmv3.decode import label_map
from segmv3.errors import ModelError, ResourceError
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.models.segmenter import Segmenter
from segmv3.weights.opening import open_segmenter


def use_device(device: Device = "auto", threads: int | None = None) -> torch.device:
    """The device to run on, after setting the number of CPU threads of this process.

    Raises: ResourceError for a CUDA device that is not there, ModelError for a thread count below 1.
    """
    if threads is not None:
        if threads < 1:
            raise ModelError(f"--threads is {threads}; it must be at least 1")
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")


class Predictor:
    """`predict(image) -> labels` for one net.

    Attributes: classes: names and colours of the train ids. card: what the weight file says of itself.
        model: the net, in eval mode.
    """

    def __init__(self, model: Segmenter, card: Card, *, device: torch.device, precision: Precision = "fp32") -> None:
        self.model = model.eval().to(device).to(memory_format=torch.channels_last)
        self.card = card
        self.device = device
        self.precision = precision

    @property
    def classes(self) -> Classes:
        return self.card.classes

    def __call__(self, image: UInt8Array) -> UInt8Array:
        """Label every pixel.

        Args: image: uint8 H x W x 3, RGB, any size.
        Returns: uint8 H x W, train ids 0..classes-1.
        Raises: ModelError for an array of another shape or dtype.
        """
        image = np.asarray(image)
        if image.dtype != "uint8" or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ModelError(f"an image must be uint8 H x W x 3 (RGB), found {image.dtype} {image.shape}")
        pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            logits = self.model.low_logits(pixels.permute(2, 0, 1)[None])
            return label_map(logits.float(), image.shape[:2])[0].cpu().numpy()


def load(
    source: Path | str,
    *,
    backend: Literal["auto", "torch"] = "auto",
    threads: int | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> Predictor:
    """Open weights for prediction: a file of segmv3 or of a project it can import, or a published name.

    Args: source: such as "best.safetensors", "downloads/lraspp.pth" or "mmseg/lraspp_m-v3-d8".
        backend: "auto" picks the fastest that is installed (today torch is the only one). threads: CPU threads;
        None leaves the process as it is.
    Raises: CheckpointError for a file that cannot be used, ResourceError for a device that is not there.
    """
    if backend not in ("auto", "torch"):
        raise ModelError(f"there is no backend {backend!r}; this version has torch")
    model, card = open_segmenter(source)
    return Predictor(model, card, device=use_device(device, threads), precision=precision)

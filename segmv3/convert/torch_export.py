"""torch.export: a net as a .pt2 file, for PyTorch without this package.

Reading one runs code: `torch.export.load` unpickles what is marked so (it falls back to `weights_only=False`), and
evaluates expressions of the graph as Python. No check can make a stranger's .pt2 safe. segmv3's hold tensors as
plain bytes; `segmv3.load` opens a .pt2 only beside a receipt with its SHA-256, which proves that it is whole and not
who wrote it. `TorchExport.read` runs nothing.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from segmv3.convert.base import Arithmetic, Run, Say, Target
from segmv3.convert.extras import silence
from segmv3.convert.graph import Graph, Net, example
from segmv3.convert.metadata import KEY, Metadata, from_text
from segmv3.errors import CheckpointError, ModelError
from segmv3.files import write_bytes
from segmv3.images import UInt8Array

_LONGEST = 1_000_000


@dataclass(frozen=True)
class TorchExport(Target):
    """One file for PyTorch without this package."""

    name: ClassVar[str] = "torch-export"
    classifiers: ClassVar[bool] = True
    suffix: ClassVar[str] = ".pt2"
    runs_code: ClassVar[bool] = True

    def write(
        self, model: Net, metadata: Metadata, path: Path, images: Sequence[UInt8Array] = (), say: Say = print
    ) -> None:
        write_bytes(path, to_torch_export(model, metadata))

    def read(self, path: Path) -> Metadata:
        try:
            with zipfile.ZipFile(path) as archive:
                name = next((name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")), None)
                if name is not None and archive.getinfo(name).file_size > _LONGEST:
                    name = None
                text = archive.read(name).decode() if name else None
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise CheckpointError(f"{path} is damaged or no .pt2 file ({error})") from None
        return from_text(text, path)

    def open(self, path: Path, metadata: Metadata, runtime: str, precision: Arithmetic, threads: int) -> Run:
        module = torch.export.load(path).module()

        def run(images: UInt8Array) -> Tensor:
            try:
                with torch.inference_mode():
                    return module(torch.from_numpy(images))
            except AssertionError:  # a condition of the program, as torch.export puts it
                height, width = images.shape[1:3]
                raise ModelError(f"{path} takes larger images than {height}x{width}") from None

        return run


def least_size(model: Net) -> int:
    """The least height and width that a .pt2 for any size takes: torch.export lets no dynamic side become 1."""
    return model.config.backbone.output_stride + 1


def to_torch_export(model: Net, metadata: Metadata) -> bytes:
    """Convert a net.

    Args:
        model: the net.
        metadata: says which output and size; its text is kept among the file's extra files.
    """
    image, shapes = example(metadata.size), None
    if not metadata.size:
        image = image.expand(2, -1, -1, -1)  # a batch of one would be taken for the only one
        least = least_size(model)
        sides = {name: torch.export.Dim(name, min=least) for name in ("height", "width")}
        shapes = ({0: torch.export.Dim("batch"), 1: sides["height"], 2: sides["width"]},)
    buffer = io.BytesIO()
    with silence(), torch.no_grad():
        program = torch.export.export(Graph(model, metadata.output), (image,), dynamic_shapes=shapes)
        torch.export.save(program, buffer, extra_files={KEY: metadata.to_text()})
    return buffer.getvalue()

"""The contract of an export target: one kind of file that a net is written to, and how that file is opened again.

A target of your own is a frozen dataclass that derives from `Target`; `examples/own_target.py` is one. Pass it to
`segmv3.export(..., target=MyTarget())` and to `segmv3.load(..., targets=[MyTarget()])`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmv3.convert.graph import Net as Net
from segmv3.convert.graph import Output, needs_fixed_size
from segmv3.convert.metadata import FilePrecision
from segmv3.convert.metadata import Metadata as Metadata
from segmv3.errors import CheckpointError, ModelError
from segmv3.images import UInt8Array
from segmv3.models.segmenter import Segmenter as Segmenter
from segmv3.models.zoo import net_name

Arithmetic = Literal["fp32", "bf16", "fp16", "int8"]
Size = tuple[int, int]

Run = Callable[[UInt8Array], Tensor | NDArray[Any]]
"""Runs a net: images, uint8 N x H x W x 3 RGB, to its output."""

Say = Callable[[str], None]
"""Is told what is done next."""

_LARGEST_WEIGHT = 64
"""Of int8: 2 * 255 * 64 fits into 16 signed bits, 2 * 255 * 65 does not."""


class Target:
    """One kind of exported file. `name`, `suffix`, `write` and `open` are needed; the rest has defaults."""

    name: ClassVar[str] = ""
    """NAME of `segmv3 export --to NAME`, also in the receipt."""
    suffix: ClassVar[str] = ""
    """Suffix of the file, with its dot."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages that writing needs."""
    extra: ClassVar[str] = ""
    """The extra of segmv3 that installs these packages."""
    runtimes: ClassVar[tuple[str, ...]] = ("torch",)
    """What opens the file. The export is proved with the first one."""
    precision: ClassVar[FilePrecision] = "fp32"
    """The arithmetic that the file asks for."""
    calibrated: ClassVar[bool] = False
    """Whether `write` needs images of the kind that the net will see."""
    classifiers: ClassVar[bool] = False
    """Whether `write` takes classifiers too, whose only output is "class-logits"."""
    runs_code: ClassVar[bool] = False
    """Whether opening a stranger's file can run code. Such a file is opened with `trust` only."""
    baseline: ClassVar["Target | None"] = None
    """The target whose latency is measured beside this one."""
    processors: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Processors on which the file is right, and why; for the receipt."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files of an export, the one that is named first."""
        return (path,)

    def refuse(self, model: Any, size: Size | None) -> None:
        """Refuse a net or a size that this kind of file cannot hold.

        Args:
            model: the net.
            size: the only height and width that the file will take, None for any.

        Raises:
            ModelError: with what to do instead.
        """
        name = net_name(model.config)
        if not (self.classifiers or isinstance(model, Segmenter)):
            raise ModelError(f"the {self.name} export takes segmentation nets only, this is a {name}")
        if size is None:
            if needs_fixed_size(model):
                raise ModelError(
                    f"{name} pools over windows, so it exports at a fixed size only; add --size HEIGHT WIDTH"
                )
            return
        least = model.config.backbone.output_stride
        if min(size) < least:
            raise ModelError(
                f"--size {size[0]} {size[1]} is too small: one cell of {name}'s deepest map is {least} x {least}"
            )

    def write(
        self, model: Any, metadata: Metadata, path: Path, images: Sequence[UInt8Array] = (), say: Say = print
    ) -> None:
        """Write a net.

        Args:
            model: the net; it is left as it is.
            metadata: which output and size the file has. Keep its text in the file if the format has a place for it.
            path: the file; its folder exists and holds nothing else.
            images: uint8 H x W x 3 RGB of any sizes, for a calibrated target.
            say: is told what is done next.
        """
        raise NotImplementedError

    def read(self, path: Path) -> Metadata:
        """What a file says of itself. The file is there, and nothing of it is run.

        Raises:
            CheckpointError: it is damaged or no export of segmv3.
        """
        from segmv3.convert.receipt import metadata_of

        return metadata_of(path)

    def open(self, path: Path, metadata: Metadata, runtime: str, precision: Arithmetic, threads: int) -> Run:
        """Open a file that `write` wrote.

        Args:
            path: the file.
            metadata: what the file says of itself.
            runtime: one of `runtimes`.
            precision: one of `precisions`.
            threads: CPU threads.

        Returns:
            a function that several threads may call at once.
        """
        raise NotImplementedError

    def precisions(self, own: FilePrecision, runtime: str) -> tuple[Arithmetic, ...]:
        """Precisions in which a runtime can run a file of this precision.

        Args:
            own: the precision of the file.
            runtime: one of `runtimes`.
        """
        return ("fp32", "bf16") if (own, runtime) == ("fp32", "openvino") else (own,)

    def is_safe(self, path: Path) -> bool:
        """Whether an int8 file is right on processors without VNNI too."""
        return True


def check_target(target: object) -> Target:
    """Refuse what cannot be used as a target.

    Raises:
        ModelError: in one line, what it lacks.
    """
    if not isinstance(target, Target):
        raise ModelError(f"{target!r:.80} is no export target; derive it from segmv3.convert.base.Target")
    kind = type(target)
    missing = [name for name in ("name", "suffix") if not getattr(target, name)]
    missing += [f"{name}()" for name in ("write", "open") if getattr(kind, name) is getattr(Target, name)]
    if missing:
        raise ModelError(f"{kind.__name__} is no export target: it lacks {' and '.join(missing)}")
    if not target.suffix.startswith(".") or not target.runtimes:
        raise ModelError(f"{kind.__name__} is no export target: its suffix needs a dot, and it needs a runtime")
    return target


def sums_fit(weights: Iterable[NDArray[np.int8]]) -> bool:
    """Whether all sums of an int8 net fit into 16 bits. Then it is right on processors without VNNI too.

    Args:
        weights: of each layer; those of convolutions are ... x channels x height x width.
    """
    summed = (each.astype(np.int16) for each in weights if each.ndim > 3 and each.shape[-3] > 1)
    return all(np.abs(each).max() <= _LARGEST_WEIGHT for each in summed)


def refuse_missing(target: Target) -> None:
    """Refuse a target whose packages are not installed.

    Raises:
        ModelError: with the line that installs what is missing.
    """
    missing = [package for package in target.needs if not find_spec(package)]
    if missing:
        remedy = f'"segmv3[{target.extra}]"' if target.extra else " ".join(missing)
        needs = " and ".join(target.needs)
        absent = " and ".join(missing)
        raise ModelError(f"the {target.name} export needs {needs} ({absent} missing); pip install {remedy}")


@dataclass(frozen=True, kw_only=True)
class FileBackend:
    """An exported file in its runtime, ready to run: a `segmv3.runtime.backends.Backend`."""

    path: Path
    name: str
    output: Output
    size: Size | None
    precision: Arithmetic
    threads: int
    call: Run
    """Runs the net, at one size where the file has one."""
    device: str = "cpu"

    def run(self, images: UInt8Array) -> Tensor | NDArray[Any]:
        """As `Backend.run`. A file of a fixed size takes one image at a time."""
        height, width = images.shape[1:3]
        if self.size and self.size != (height, width):
            only = f"{self.size[0]}x{self.size[1]}"
            raise ModelError(
                f"{self.path} takes images of {only} (height x width) only, this one is "
                f"{height}x{width}; resize it, or export again with --size {height} {width}"
            )
        if self.size is None or len(images) == 1:
            return self.call(images)
        # copied, for what a runtime returns may be its own memory until the next call
        return torch.cat([torch.as_tensor(self.call(images[i : i + 1])).clone() for i in range(len(images))])


def open_file(
    target: Target, path: Path, metadata: Metadata, precision: Arithmetic, threads: int, runtime: str | None = None
) -> FileBackend:
    """An exported file in a runtime of its target.

    Args:
        runtime: None for the first one of the target.

    Raises:
        CheckpointError: it cannot be opened.
    """
    name = runtime or target.runtimes[0]
    return FileBackend(
        call=target.open(path, metadata, name, precision, threads),
        name=name,
        output=metadata.output,
        size=metadata.size,
        precision=precision,
        threads=threads,
        path=path,
    )


def cannot(do: str, path: Path, runtime: str, error: Exception) -> CheckpointError:
    """Add the last line of a runtime's message; the lines before it are places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1][:200] if lines else type(error).__name__
    return CheckpointError(f"{runtime} cannot {do} {path} ({reason}); export it again")

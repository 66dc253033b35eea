"""What TensorBoard shows of a run."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.errors import ResourceError


class Board:
    """Event files of a run: its loss, learning rate and speed; at evaluations its scores and a panel of samples.

    Args: step: where the run goes on; what an earlier process wrote of later steps is hidden.
    Raises: ResourceError without the package.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, entry: dict[str, Any]) -> None:
        """The numbers of a line of log.jsonl; with it, all there is so far is written."""
        for name, value in entry.items():
            if name not in ("event", "step"):
                self._scalar(f"{entry['event']}/{name}", value, entry["step"])
        self._writer.flush()

    def add_classes(self, rows: Iterable[dict[str, Any]], step: int) -> None:
        """The IoU of each class, from the rows of the scores; a class without pixels has none."""
        for row in rows:
            if row.get("iou") is not None:
                self._scalar(f"IoU/{row['name']}", row["iou"], step)

    def add_samples(self, panel: NDArray[np.uint8], step: int) -> None:
        """Args: panel: uint8 H x W x 3."""
        self._writer.add_image("samples", panel, step, dataformats="HWC")

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)


def require_tensorboard() -> None:
    """Raises: ResourceError without the package."""
    try:
        import_module("tensorboard")
    except ImportError:
        raise ResourceError('--tensorboard needs the package tensorboard: pip install "segmv3[log]"') from None

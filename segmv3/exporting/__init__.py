"""Exporting a net to a file for another runtime, with proof that the file computes what PyTorch computes.

What is particular to a kind of file is in its target: `segmv3.convert.base`.
"""

from collections.abc import Sequence
from pathlib import Path

from segmv3.config import Data
from segmv3.convert.base import Say, Size, Target
from segmv3.convert.graph import Output
from segmv3.convert.targets import find_target
from segmv3.errors import ConfigError
from segmv3.exporting.pictures import labelled, photographs
from segmv3.exporting.writing import Exported as Exported
from segmv3.exporting.writing import write_proved
from segmv3.models.nets import Part
from segmv3.runtime.device import use_device


def export(
    weights: Path | str,
    output: Path | str | None = None,
    *,
    target: str | Target,
    output_kind: Output = "low-logits",
    size: Size | None = None,
    images: str | None = None,
    data: Data | None = None,
    split: str = "val",
    limit: int | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    parts: Sequence[Part] = (),
    command: str = "",
    say: Say = lambda _: None,
) -> Exported:
    """Write weights as a file for another runtime, and prove that it computes what PyTorch computes.

    This is what `segmv3 export` does. A file that disagrees with PyTorch is not left in place.

    Args:
        weights: a weight file or a published name.
        output: the file, with the suffix of the target; by default the name of the weights, in the current folder.
        target: one of `segmv3.convert.targets.NAMES`, such as "onnx", or a target of your own.
        output_kind: what comes out of the net in the file.
        size: the only height and width that the file will take, None for any.
        images: image, folder, glob or list to compare on, and to calibrate int8 on; by default two drawn scenes.
        data: a data set whose images and labels prove the export, instead of images.
        split: the part of the data to compare and score on; int8 is calibrated on train.
        limit: how many images to compare at most, evenly spread.
        overwrite: replace the file and its receipt.
        threads: CPU threads; None leaves them as they are.
        parts: classes of the net's head and backbone where they are not segmv3's own.
        command: for the receipt.
        say: is told what is done next.

    Returns:
        the file, its receipt, and how well it agrees.

    Raises:
        ConfigError: two ways to name images, or a size that is none.
        CheckpointError: weights that cannot be used.
        ModelError: a net, size or package that does not allow it; DisagreementError, one of it, with the numbers.
        DataError: images that cannot be read.
        OutputError, ResourceError: a file that cannot be written.
    """
    if size and min(size) < 1:
        raise ConfigError(f"--size is {size[0]} {size[1]}; height and width must be at least 1")
    if images and data:
        raise ConfigError("--images and --data.root are two ways to name images; choose one of them")
    use_device("cpu", threads)
    writer = find_target(target)
    pictures = None
    if images:
        pictures = photographs(images, limit)
    elif data:
        pictures = labelled(data, split, limit, whole=writer.calibrated)
    return write_proved(
        weights,
        writer,
        Path(output) if output else None,
        output=output_kind,
        size=size,
        pictures=pictures,
        overwrite=overwrite,
        parts=parts,
        command=command,
        say=say,
    )

"""What a user can say of an import. Nothing here imports numpy or torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segmv3.settings import Rule


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """How a source is read, and how its frames are shared out."""

    kind: str | None = None
    """Kind of the source; by default the first that fits."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the mask values, or one file of them; by default those that the source has."""
    palette: Path | None = None
    """File of the colours of the masks: a classes.json with rgb, or lines of a name and three numbers."""
    ignore: tuple[str, ...] = ("void", "ignore", "unlabeled", "unlabelled")
    """Names of classes that count neither for the loss nor for the score."""
    masks: Path | None = None
    """Folder of the masks, where they do not lie below SOURCE."""
    images: Path | None = None
    """Folder of the images that an annotation file names, where they do not lie beside it."""
    background: str | None = None
    """Class of the pixels that no annotated region covers; by default they count neither for the loss nor the score."""
    native: bool = False
    """Keep a data set's own classes instead of the 19 of Cityscapes (Mapillary Vistas, IDD, A2D2)."""
    snap: bool = False
    """Give pixels of blended colours (smooth edges, JPEG) the nearest colour of the palette."""
    val: float = 0.2
    """Share of the frames for the split val, where the source has no splits of its own; 0 makes none."""
    test: float = 0.0
    """Share of the frames for the split test, likewise."""
    split_by: Literal["drive", "frames"] = "drive"
    """Whole drives go to one split, or of one long drive its end; or single frames, although neighbours are alike."""
    drive: str | None = None
    """Regular expression: what it finds in the name of a frame is its drive. By default the folder or name prefix."""
    seed: int = 0
    """Start of the draw of drives or frames."""
    copy: bool = False
    """Copy images instead of linking them, for file systems without links or a source that will go away."""


def import_rules(settings: ImportSettings) -> list[Rule]:
    low = min(settings.val, settings.test)
    return [(low >= 0 and settings.val + settings.test < 1, "--val and --test", "are shares, and train needs frames")]

"""The contract between the readers, one for each kind of source, and what writes the data set.

A reader is listed in `segmv3.data.importing.readers`. It says whether a source is of its kind (`look`), and what lies
there (`read`): the classes, and for each frame the image and its label. It writes nothing and asks nothing. Linking,
writing, splitting, counting and all checks of sizes and ids are done by `segmv3.data.importing.run`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from segmv3.data.importing.settings import ImportSettings
from segmv3.errors import DataError
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, Classes, Color, class_name, named_classes

Label = Callable[[], UInt8Array]
"""Makes the label of a frame: uint8 H x W, of the size that `read_image` has for the image. Its values are those of the
legend (`SourceClass.value`), or 255 for pixels that nobody labelled. It is called once, in any thread, and raises
DataError.
"""

Tell = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and how much there is: `tell("masks", 3, 100)`."""


@dataclass(frozen=True)
class SourceClass:
    """One thing that labels of the source tell apart."""

    value: int
    """What stands for it in the labels of the frames: 0..254, or 255 for what is ignored anyway."""
    name: str
    """What the source calls it."""
    to: str | None
    """The class of the data set that it becomes; None for ignored."""
    rgb: Color | None = None
    """Its colour, for display; that of a class is the one of the first that becomes it."""
    shown: str = ""
    """How the source stores it, where that is not `value`: `#804080`, `polygons`."""


@dataclass(frozen=True)
class Legend:
    """What the labels of a source mean."""

    classes: Classes
    """Those of the data set, in train-id order."""
    sources: tuple[SourceClass, ...]
    """Everything that labels may hold. Another value in a label is refused, with its count."""

    @property
    def ids(self) -> dict[int, int]:
        """What each value is in the label files of the data set: a train id, or 255 for ignored."""
        train_ids = {name: id_ for id_, name in enumerate(self.classes.names)}
        return {each.value: IGNORE if each.to is None else train_ids[each.to] for each in self.sources}


@dataclass(frozen=True)
class Frame:
    """One image of the source."""

    image: Path
    name: str
    """Unique, without suffix; folders that tell drives apart stay in it: `drive_1/000012`. Frames of one drive that
    are sorted by name are in the order of time."""
    label: Label | None
    """None where nobody labelled it: such frames are left out and counted."""
    drive: str = ""
    """Drive or clip that it is from, if the source says so; by default it is found from folders and name prefixes."""
    split: str = ""
    """train, val or test where the source has splits of its own (`split_named`)."""


@dataclass(frozen=True)
class Content:
    """What a reader found in a source."""

    legend: Legend
    frames: tuple[Frame, ...]
    left_out: tuple[str, ...] = ()
    """A line for each kind of thing that is there and not taken, counted, with the first name."""
    said: tuple[str, ...] = ()
    """A line for each thing that was found out or decided and that the user should know."""


class Reader(ABC):
    """A kind of source."""

    name: ClassVar[str]
    """As `--kind` takes it: `coco`."""
    looks_for: ClassVar[str]
    """What makes a source one of this kind, as the end of "coco (a .json with images, annotations and categories)"."""
    uses: ClassVar[tuple[str, ...]] = ()
    """The settings that it looks at, of those that not all readers do. Others are refused where a user gives them."""

    @abstractmethod
    def look(self, source: Path, settings: ImportSettings) -> str | None:
        """Whether a source, an existing file or folder, is of this kind: quick and certain.

        Returns:
            What was found in a few words for the user (`instances_train.json and 1 more`); None where it is not.

        Raises:
            DataError: it is of this kind without doubt, and cannot be read.
        """

    @abstractmethod
    def read(self, source: Path, settings: ImportSettings, tell: Tell) -> Content:
        """Everything that the source holds. `tell` is told how far the work is.

        Raises:
            DataError: one line with what is wrong, where, and what to do.
        """


SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""The splits of a data set, and what folders of them are called."""


def split_named(folder: str) -> str:
    """`train`, `val` or `test` for a folder that is called like a split (`Validation`); empty for any other."""
    return next((split for split, names in SPLITS.items() if folder.lower() in names), "")


def legend_of(sources: Iterable[SourceClass], settings: ImportSettings, where: Path | str) -> Legend:
    """The legend of what a source tells apart.

    Several that become the same class are one class; the classes stand in the order of their first. Names that
    `settings.ignore` lists are ignored.

    Args:
        sources: in the order of the classes.
        settings: what the user said.
        where: the file or folder that names them, for messages.

    Raises:
        DataError: a name cannot be used, or less than two classes are left.
    """
    ignored = {name.casefold() for name in settings.ignore}
    kept: list[SourceClass] = []
    for each in sources:
        try:
            name = each.to if each.to is None else class_name(each.to)
        except ValueError as error:
            raise DataError(f"{where}: {each.shown or each.value}: {error}") from None
        left = name is None or name.casefold() in ignored or each.value == IGNORE
        kept.append(replace(each, to=None if left else name))
    names = tuple(dict.fromkeys(each.to for each in kept if each.to is not None))
    if not 2 <= len(names) < 254:
        raise DataError(
            f"{where} has {len(names)} classes to learn ({', '.join(names[:5]) or 'none'}); 2 to 253 are possible. "
            "--classes names more, --background names the pixels of no region, --ignore names fewer to ignore"
        )
    given = {each.to: each.rgb for each in reversed(kept) if each.rgb is not None}
    colors = (given.get(name, color) for name, color in zip(names, named_classes(*names).colors, strict=True))
    return Legend(Classes(names, tuple(colors)), tuple(kept))

"""Which mask belongs to which image, in whatever folders and under whatever usual names they lie."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from segmv3.data.importing.base import split_named
from segmv3.data.listing import images_below, told
from segmv3.errors import DataError

_IMAGE = r"images?|imgs?|im|jpegimages|frames?|photos?|pictures?|rgb|original|originals|raw|inputs?|leftimg8bit"
_MASK = (
    r"masks?|labels?|labell?ed|annot|annots|annotations?|annotated|gt|gts|gtfine|ground|truth|groundtruth|segs?|"
    r"segmentations?|segmentationclass|semantic|semseg|targets?|labelids|labeltrainids|labellevel\d[a-z]*|trainids|lbl"
)
_SPLIT = r"train|training|val|valid|validation|test|testing"
_JOINTS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Paired:
    """An image, and its mask where it has one."""

    image: Path
    mask: Path | None
    name: str
    """The way below the source, without the folders that only say what lies in them."""
    split: str


@dataclass(frozen=True)
class Pairs:
    """What was paired in a source."""

    pairs: tuple[Paired, ...]
    lone_masks: tuple[Path, ...]
    left_out: tuple[str, ...]
    where: str
    """How masks are told from images."""


@dataclass(frozen=True)
class _File:
    path: Path
    folders: tuple[str, ...]
    """Parts of the way that are no words for images, masks or splits."""
    split: str
    is_mask: bool | None
    """What its folders say; None where they say nothing."""

    def key(self, *, loose: bool) -> tuple[str, ...]:
        """What an image and its mask have in common; `loose` without words for either in the name."""
        name = "_".join(_other(_words(self.path.stem, last=True), _IMAGE, _MASK)) if loose else self.path.stem
        return (self.split, *self.folders, name)


def find_pairs(source: Path, masks: Path | None = None) -> Pairs:
    """Pair the images below a folder with their masks.

    Masks lie in folders of their own (`labels/`, `masks/`, `annotations/`, `trainannot/`, ...), or beside their image,
    as `a_mask.png` or as `a.png` beside `a.jpg`.

    Args:
        source: the folder.
        masks: where the masks lie if not there; all images of the source are images then.

    Raises:
        DataError: a folder cannot be listed, or two files could be the image or the mask of one another.
    """
    if masks and not masks.is_dir():
        raise DataError(f"{masks} is no folder; set --masks to the folder of the masks")
    listed = images_below(source)
    left_out = told(source, listed.left_out)
    files = [_file(Path(path), source) for path in listed.paths]
    if masks:
        images = [file for file in files if not file.path.resolve().is_relative_to(masks.resolve())]
        stored, where = [_file(Path(path), masks) for path in images_below(masks).paths], f"in {masks}"
    elif any(file.is_mask for file in files):
        named = any(file.is_mask is False for file in files)
        images = [file for file in files if file.is_mask is False or (file.is_mask is None and not named)]
        others = [str(file.path) for file in files if file.is_mask is None] if named else []
        if others:
            left_out.append(f"{len(others):,} files in folders of neither images nor masks (first: {others[0]})")
        stored = [file for file in files if file.is_mask]
        folders = sorted({file.path.parent.relative_to(source).parts[0] for file in stored})
        where = f"in {', '.join(folders[:5])}{', ...' * (len(folders) > 5)}"
    else:
        photos = {file.key(loose=False) for file in files if file.path.suffix.lower() != ".png"}
        png = {file for file in files if file.path.suffix.lower() == ".png" and file.key(loose=False) in photos}
        stored = [file for file in files if file in png or _named_mask(file)]
        images, where = [file for file in files if file not in set(stored)], "beside their images"
    return _paired(images, stored, tuple(left_out), where)


def _paired(images: list[_File], stored: list[_File], left_out: tuple[str, ...], where: str) -> Pairs:
    """By name; what is left, without the words for images and masks; then wherever a name occurs once."""
    found: dict[Path, _File] = {}
    lone = images
    for way in (
        lambda file: file.key(loose=False),
        lambda file: file.key(loose=True),
        lambda file: (file.key(loose=True)[-1],),
    ):
        sides = [_keyed(files, way) for files in (lone, stored)]
        for key in sides[0].keys() & sides[1].keys():
            (image, *more), (mask, *others) = sides[0][key], sides[1][key]
            if (more or others) and len(key) > 1:
                what, two = ("images of", (image, *more)) if more else ("masks of", (mask, *others))
                one = mask if more else image
                raise DataError(f"{two[0].path} and {two[1].path} could both be {what} {one.path}; keep one of them")
            if not more and not others:
                found[image.path] = mask
        taken = {mask.path for mask in found.values()}
        lone = [file for file in lone if file.path not in found]
        stored = [file for file in stored if file.path not in taken]
    pairs = []
    for file in images:
        name, mask_of = PurePath(*file.folders, file.path.stem).as_posix(), found.get(file.path)
        own, split = (mask_of.path, mask_of.split) if mask_of else (None, "")
        pairs.append(Paired(file.path, own, name, file.split or split))
    return Pairs(tuple(pairs), tuple(mask.path for mask in stored), left_out, where)


def _keyed(files: Iterable[_File], way: Callable[[_File], tuple[str, ...]]) -> dict[tuple[str, ...], list[_File]]:
    keyed: dict[tuple[str, ...], list[_File]] = defaultdict(list)
    for file in files:
        keyed[way(file)].append(file)
    return keyed


def _file(path: Path, root: Path) -> _File:
    folders, split, is_mask = list[str](), "", None
    for part in path.parent.relative_to(root).parts:
        words = _words(part)
        rest = _other(words, _IMAGE, _MASK)
        sides = len(words) > len(rest)
        if sides:
            is_mask = len(_other(words, _MASK)) < len(words)
        unsplit = _other(rest, _SPLIT)
        if len(unsplit) < len(rest) and (sides or not unsplit):  # a drive may be called test_drive_3
            split, rest = split_named(next(word for word in rest if word not in unsplit)), unsplit
        if rest:
            folders.append("_".join(rest) if sides else part)
    return _File(path, tuple(folders), split, is_mask)


def _words(name: str, *, last: bool = False) -> list[str]:
    """`trainannot` is two. With `last`, `a_L` and `a_P` are labels of `a`, as CamVid's are called."""
    text = re.sub(rf"(?i)^({_SPLIT})_?(annots?|labels?|masks?|images?)$", r"\1_\2", name)
    words = [word for word in _JOINTS.split(text) if word]
    return [*words[:-1], "label"] if last and len(words) > 1 and words[-1] in ("L", "P") else words


def _other(words: list[str], *kinds: str) -> list[str]:
    """The words that are of none of the kinds."""
    return [word for word in words if not re.fullmatch("|".join(kinds), word, re.IGNORECASE)]


def _named_mask(file: _File) -> bool:
    words = _words(file.path.stem, last=True)
    return len(words) > 1 and len(_other([words[0], words[-1]], _MASK)) < 2

"""What the pixels of masks are, before anybody has said what they mean: ids of any depth, or colours."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.data.importing.base import Tell
from segmv3.data.importing.write import over_all
from segmv3.errors import DataError
from segmv3.images import UInt8Array, decoded, read_file, read_ids

Values = NDArray[np.int32]
"""H x W: ids, or colours as 0xRRGGBB."""
GREY = 0x010101


@dataclass(frozen=True)
class Raw:
    """A mask as it is stored."""

    values: Values
    rgb: bool
    """Whether values are colours."""
    plain: bool
    """Whether `read_ids` reads it: 8 bits, one channel, no JPEG."""
    lossy: bool
    palette: Values | None = None
    """Colours by id, where the file has them."""

    def as_colours(self) -> Values:
        """Colours; ids without a palette are grey."""
        if self.rgb:
            return self.values
        return self.values * GREY if self.palette is None else self.palette[self.values]

    def as_ids(self) -> Values:
        """Ids; those of a colour file are its greys."""
        return self.values & 255 if self.rgb else self.values


def read_raw(path: Path) -> Raw:
    """Decode a mask of any kind.

    Raises:
        DataError: the file is missing, damaged or no image, or holds floating-point pixels.
    """
    data = read_file(path)
    plain, image = decoded(data, path, color=False)
    if image is None:
        assert plain is not None
        return Raw(plain.astype(np.int32), rgb=False, plain=True, lossy=False)
    lossy = image.format == "JPEG" or "jpeg" in str(image.info.get("compression", ""))
    if image.mode in ("1", "L", "P") and not lossy:
        colours = image.getpalette("RGB") if image.mode == "P" else None
        table = None if colours is None else _packed(np.array([*colours, *[0] * (768 - len(colours))]).reshape(256, 3))
        return Raw(read_ids(path, data).astype(np.int32), rgb=False, plain=True, lossy=False, palette=table)
    if image.mode in ("L", "LA", "La") or image.mode.startswith("I"):
        channel = image if image.mode.startswith("I") else image.getchannel(0)
        return Raw(np.asarray(channel).astype(np.int32), rgb=False, plain=False, lossy=lossy)
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point pixels; masks hold ids or colours")
    return Raw(_packed(np.asarray(image.convert("RGB"))), rgb=True, plain=False, lossy=lossy)


def _packed(rgb: NDArray[Any]) -> Values:
    wide = rgb.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.int32)


def runs_of(values: Values) -> tuple[Values, NDArray[np.int64], NDArray[np.int64]]:
    """Different values of a mask, which of them each run of equal pixels has, and how long it is."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    different, index = np.unique(flat[starts], return_inverse=True)
    return different, index, np.diff(np.concatenate([starts, [flat.size]]))


Totals = dict[int, tuple[int, int]]
"""(Pixels, masks) by value."""


@dataclass
class Seen:
    """What all masks hold together."""

    plain: dict[Path, bool] = field(default_factory=dict)
    """Whether `read_ids` reads each."""
    lossy: list[Path] = field(default_factory=list)
    ids: Totals = field(default_factory=dict)
    colours: Totals = field(default_factory=dict)
    rgb: bool = False
    """Whether a file holds colours other than greys."""
    palette: dict[int, int] = field(default_factory=dict)
    """Colours of the ids, where all files have palettes."""
    palettes_differ: bool = False

    def add(self, path: Path, raw: Raw, ids: Totals, colours: Totals) -> None:
        self.plain[path] = raw.plain
        self.lossy += [path] if raw.lossy else []
        self.rgb |= raw.rgb and any(colour % GREY for colour in colours)
        for mine, its in ((self.ids, ids), (self.colours, colours)):
            for value, (pixels, masks) in its.items():
                have = mine.get(value, (0, 0))
                mine[value] = have[0] + pixels, have[1] + masks
        if raw.palette is not None:
            used = {value: int(raw.palette[value]) for value in ids}
            self.palettes_differ |= any(self.palette.get(value, colour) != colour for value, colour in used.items())
            self.palette |= used


def read_all(paths: Sequence[Path], tell: Tell) -> Seen:
    """Decode all masks and count their values.

    Raises:
        DataError: counts the files that cannot be read and names the first.
    """
    seen = Seen()
    with closing(over_all(_counted, paths, "masks", tell)) as done:
        for path, found in done:
            seen.add(path, *found)
    return seen


def _counted(path: Path) -> tuple[Raw, Totals, Totals]:
    raw = read_raw(path)
    different, index, lengths = runs_of(raw.values)
    pixels = np.bincount(index, lengths).astype(np.int64).tolist()
    small = Raw(different, raw.rgb, raw.plain, raw.lossy, raw.palette)
    return small, _totals(small.as_ids(), pixels), _totals(small.as_colours(), pixels)


def _totals(values: Values, pixels: Iterable[int]) -> Totals:
    totals: dict[int, int] = defaultdict(int)
    for value, number in zip(values.tolist(), pixels, strict=True):
        totals[value] += number
    return {value: (number, 1) for value, number in totals.items()}


def ids_of(path: Path, table: Mapping[int, int], *, coloured: bool) -> UInt8Array:
    """A mask as the values that its pixels mean.

    Args:
        path: the mask.
        table: what each id, or each colour, is; another one takes what the nearest is.
        coloured: whether the mask is read as colours.

    Returns: uint8 H x W.
    """
    raw = read_raw(path)
    values = raw.as_colours() if coloured else raw.as_ids()
    different, index, lengths = runs_of(values)
    known = np.array(list(table))
    new = np.array(list(table.values()), np.uint8)[nearest(different, known)]
    return np.repeat(new[index], lengths).reshape(values.shape)


def nearest(values: NDArray[Any], known: NDArray[Any]) -> NDArray[np.int64]:
    """The place in `known` of what lies nearest to each value, as a colour: ids are blues."""
    points, own = [np.stack([v >> 16, v >> 8 & 255, v & 255], -1) for v in (values, known)]
    best = np.empty(len(values), np.int64)
    for start in range(0, len(values), 4096):
        part = points[start : start + 4096, None] - own[None]
        best[start : start + 4096] = (part**2).sum(-1).argmin(1)
    return best

"""What the pixels of masks are, before anybody has said what they mean: ids of any depth, or colours."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.errors import DataError
from segmv3.images import UInt8Array, decoded, read_file, read_ids
from segmv3.labels import Color

Values = NDArray[np.int32]
"""Ids, or colours as 0xRRGGBB."""
Totals = dict[int, tuple[int, int]]
"""(Pixels, masks) by value, the most frequent first."""
_GREY = 0x010101


@dataclass(frozen=True)
class Raw:
    """A mask as it is stored."""

    values: Values
    rgb: bool = False
    """Whether values are colours."""
    lossy: bool = False
    palette: Values | None = None
    """Colours by id, where the file has them."""

    def colours(self, values: Values) -> Values:
        """Some values as colours; ids without a palette are grey."""
        if self.rgb:
            return values
        return values * _GREY if self.palette is None else self.palette[values]

    def ids(self, values: Values) -> Values:
        """Some values as ids; those of a colour file are its greys."""
        return values & 255 if self.rgb else values


@dataclass(frozen=True)
class Counted:
    """What one mask holds."""

    path: Path
    ids: Mapping[int, int]
    """Pixels by id."""
    colours: Mapping[int, int]
    """Pixels by colour."""
    coloured: bool
    """Whether it holds colours other than greys."""
    lossy: bool
    palette: Mapping[int, int]
    """Colours of its ids, where the file has a palette."""


def read_raw(path: Path) -> Raw:
    """Decode a mask of any kind.

    Raises:
        DataError: the file is missing, damaged or no image, or holds floating-point pixels.
    """
    data = read_file(path)
    image = decoded(data, path, color=False)
    if isinstance(image, np.ndarray):
        return Raw(image.astype(np.int32))
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point pixels; masks hold ids or colours")
    lossy = image.format == "JPEG" or "jpeg" in str(image.info.get("compression", ""))
    if image.mode in ("1", "L", "P") and not lossy:
        colours = image.getpalette("RGB") if image.mode == "P" else None
        table = None if colours is None else packed(np.array([*colours, *[0] * (768 - len(colours))]).reshape(256, 3))
        return Raw(read_ids(path, data).astype(np.int32), palette=table)
    if image.mode in ("LA", "La") or image.mode.startswith("I"):
        channel = image if image.mode.startswith("I") else image.getchannel(0)
        return Raw(np.asarray(channel).astype(np.int32))
    return Raw(packed(np.asarray(image.convert("RGB"))), rgb=True, lossy=lossy)


def packed(rgb: NDArray[Any] | Color) -> Values:
    """Numbers 0xRRGGBB of RGB colours (... x 3)."""
    wide = np.asarray(rgb, np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.int32)


def unpacked(colors: Values) -> Values:
    """RGB colours (... x 3) of numbers 0xRRGGBB."""
    return np.stack([colors >> 16, colors >> 8 & 255, colors & 255], -1)


def counted(path: Path) -> Counted:
    """Count the values of a mask. Raises: DataError, as `read_raw`."""
    raw = read_raw(path)
    different, index, lengths = _runs(raw.values)
    pixels = np.bincount(index, lengths).astype(np.int64).tolist()
    ids, colours = Counter[int](), Counter[int]()
    for values, counts in ((raw.ids(different), ids), (raw.colours(different), colours)):
        for value, number in zip(values.tolist(), pixels, strict=True):
            counts[value] += number
    palette = {} if raw.palette is None else {value: int(raw.palette[value]) for value in ids}
    return Counted(path, ids, colours, raw.rgb and any(each % _GREY for each in colours), raw.lossy, palette)


def totals_of(counts: Iterable[Mapping[int, int]]) -> Totals:
    """The sum over masks."""
    pixels, masks = Counter[int](), Counter[int]()
    for each in counts:
        pixels.update(each)
        masks.update(each.keys())
    return {value: (pixels[value], masks[value]) for value in sorted(pixels, key=lambda value: (-pixels[value], value))}


def ids_of(path: Path, table: Mapping[int, int], *, coloured: bool, snap: bool = False) -> UInt8Array:
    """A mask as the values that its pixels mean.

    Args:
        path: the mask.
        table: what each id, or each colour, means.
        coloured: whether the mask is read as colours.
        snap: whether another colour means what the nearest one does.

    Returns: uint8 H x W.
    Raises: DataError for what is not in the table, with its counts.
    """
    raw = read_raw(path)
    stored, index, lengths = _runs(raw.values)
    different, known = raw.colours(stored) if coloured else raw.ids(stored), np.array(list(table))
    if not snap and not (legal := np.isin(different, known)).all():
        pixels = np.bincount(index, lengths)[~legal]
        odd = [shown_as(value, coloured) for value in different[~legal].tolist()]
        shown = ", ".join(f"{value} ({number:,.0f} pixels)" for value, number in [*zip(odd, pixels, strict=True)][:5])
        raise DataError(f"{path} holds {len(odd):,} {what(coloured)} that no class has: {shown}")
    distances = [((unpacked(different) - color) ** 2).sum(-1) for color in unpacked(known)]
    meanings = np.array(list(table.values()), np.uint8)[np.argmin(distances, 0)]
    return np.repeat(meanings[index], lengths).reshape(raw.values.shape)


def what(coloured: bool) -> str:
    """What a mask holds, for messages."""
    return "colours" if coloured else "ids"


def shown_as(value: int, coloured: bool) -> str:
    """A value for messages: `#804080`, or the id."""
    return f"#{value:06x}" if coloured else str(value)


def _runs(values: Values) -> tuple[Values, NDArray[np.int64], NDArray[np.int64]]:
    """Different values of a mask, which of them each run of equal pixels has, and how long it is."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    different, index = np.unique(flat[starts], return_inverse=True)
    return different, index, np.diff(np.concatenate([starts, [flat.size]]))

"""Images with a mask each: ids of any depth, colours, palettes, 0 and 255."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segmv3.data.importing.base import Content, Frame, Legend, Reader, SourceClass, Tell, legend_of
from segmv3.data.importing.names import Named, names_given
from segmv3.data.importing.pairs import find_pairs
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.importing.values import Counted, Totals, counted, ids_of, packed, shown_as, totals_of, unpacked, what
from segmv3.data.importing.write import over_all
from segmv3.data.listing import count_of
from segmv3.errors import DataError
from segmv3.labels import IGNORE

_NOISE = 16  # largest step of 255 in R, G or B that compression is taken to make
_MOST = 64  # values that are taken for classes where nobody names them: smooth edges have hundreds


class Masks(Reader):
    """Images with a mask each, in folders of their own or side by side."""

    name = "masks"
    looks_for = "images and masks of the same names, in images/ and labels/, masks/ or annotations/, or as a_mask.png"
    uses = ("classes", "palette", "masks", "snap")

    def look(self, source: Path, settings: ImportSettings) -> str | None:
        if not source.is_dir():
            return None
        found = find_pairs(source, settings.masks)
        number = sum(pair.mask is not None for pair in found.pairs)
        if found.pairs and found.lone_masks and not number:
            images, masks = _images(found.pairs), _masks(found.lone_masks)
            first = f"{found.pairs[0].image.name} and {found.lone_masks[0].name}"
            raise DataError(f"{source}: {images} and {masks} {found.where}, and no two of one name (first: {first})")
        return f"{count_of(number, 'image', 'images')} with masks {found.where}" if number else None

    def read(self, source: Path, settings: ImportSettings, tell: Tell) -> Content:
        found = find_pairs(source, settings.masks)
        named, where = names_given(source, settings)
        masks = over_all(counted, [pair.mask for pair in found.pairs if pair.mask], "masks", tell)
        meaning = _meaning(masks, named, where, settings)
        read = partial(ids_of, table=meaning.table, coloured=meaning.coloured, snap=settings.snap)
        frames = [
            Frame(pair.image, pair.name, partial(read, pair.mask) if pair.mask else None, split=pair.split)
            for pair in found.pairs
        ]
        lone = found.lone_masks
        left_out = [f"{_masks(lone)} without an image (first: {lone[0]})"] if lone else []
        return Content(meaning.legend, tuple(frames), (*found.left_out, *left_out), meaning.said)


@dataclass(frozen=True)
class _Meaning:
    """What the values of masks stand for."""

    legend: Legend
    table: Mapping[int, int]
    """The value in the legend of each id or colour."""
    coloured: bool
    said: tuple[str, ...]


def _meaning(masks: Sequence[Counted], named: Sequence[Named], where: Path | str, settings: ImportSettings) -> _Meaning:
    """Raises: DataError for values that nobody names, with their counts."""
    coloured = _coloured(masks, named)
    totals = totals_of(mask.colours if coloured else mask.ids for mask in masks)
    base = (_of_colours if coloured else _of_ids)(totals, named, where, settings)
    table = {value: number for number, (value, _) in enumerate(base)}
    sources = [
        SourceClass(number, each.name, None if each.ignored else each.name, each.rgb, shown_as(value, coloured))
        for number, (value, each) in enumerate(base)
    ]
    if len(table) < len(base):
        twice = next(value for number, (value, _) in enumerate(base) if table[value] != number)
        raise DataError(f"{where}: {shown_as(twice, coloured)} stands twice")
    if len(table) >= IGNORE:
        raise DataError(f"{where} names {len(table):,} {what(coloured)}; at most {IGNORE - 1} are possible")
    if not coloured and IGNORE not in table:
        table[IGNORE] = IGNORE
        sources += [SourceClass(IGNORE, "ignored", None)] if IGNORE in totals else []
    said = f"the masks hold {what(coloured)}, named by {where}"
    if not named:
        said = f"the masks hold {what(coloured)} without names; --classes NAME NAME ... names them in the table's order"
    snapped = _snapped(masks, totals, table, where, settings.snap, coloured)
    return _Meaning(legend_of(sources, settings, where), table, coloured, (said, *snapped))


def _coloured(masks: Sequence[Counted], named: Sequence[Named]) -> bool:
    """Whether masks are read as colours: files of colours, or palettes and greys where colours are named."""
    own = {int(packed(each.rgb)): each.id for each in named if each.rgb}
    known = all(own.keys() >= mask.colours.keys() for mask in masks)
    palette: dict[int, int] = {}
    for mask in masks:
        palette = {**mask.palette, **palette}
    differ = any(palette[value] != colour for mask in masks for value, colour in mask.palette.items())
    swapped = known and any(own[colour] != value for value, colour in palette.items())
    only_colours = bool(own) and not all(each.id is not None for each in named)
    stored = any(mask.coloured or mask.lossy for mask in masks)
    return stored or differ or swapped or (only_colours and (known or bool(palette)))


def _snapped(
    masks: Sequence[Counted], totals: Totals, table: Mapping[int, int], where: Path | str, snap: bool, coloured: bool
) -> list[str]:
    """What to say of values that nobody names. Raises: DataError where they may not take the nearest."""
    lossy = [mask.path for mask in masks if mask.lossy]
    if lossy and not snap:
        raise DataError(
            f"{count_of(len(lossy), 'mask is a JPEG', 'masks are JPEGs')} (first: {lossy[0]}): compression changes "
            f"colours, here to {_most_of(totals, True)}; --palette FILE with --snap gives each pixel the nearest colour"
        )
    others = {value: count for value, count in totals.items() if value not in table}
    if not others:
        return []
    if not (snap and coloured):
        hint = ", or --snap gives each pixel the nearest that is named" * coloured
        text = f"the masks hold {len(others):,} {what(coloured)} that {where} does not name"
        raise DataError(f"{text}: {_most_of(others, coloured)}; name them{hint}")
    pixels, total = (sum(number for number, _ in some.values()) for some in (others, totals))
    off = [np.abs(unpacked(np.array(list(others))) - colour).max(-1) for colour in unpacked(np.array(list(table)))]
    far = sum(others[value][0] for value, least in zip(others, np.min(off, 0), strict=True) if least > _NOISE)
    return [
        f"{far:,} pixels ({far / total:.2%}) are more than {_NOISE} of 255 from every colour that is named, and took "
        f"the nearest (--snap): look at these edges; {pixels - far:,} more were nearer, as compression leaves them"
    ]


def _of_colours(
    totals: Totals, named: Sequence[Named], where: Path | str, settings: ImportSettings
) -> list[tuple[int, Named]]:
    """The colours that stand for classes, in the order of the classes."""
    if any(each.rgb for each in named):
        if lacking := [each.name for each in named if not each.rgb]:
            raise DataError(f"{where} gives no colour to {lacking[0]}, and the masks hold colours; add it")
        return [(int(packed(each.rgb)), each) for each in named if each.rgb]
    if not named:
        names = _nameless(range(len(totals)), totals, True)
        colors = unpacked(np.array([*totals], np.int32)).tolist()
        return [
            (value, Named(name, rgb=(red, green, blue)))
            for value, name, (red, green, blue) in zip(totals, names, colors, strict=True)
        ]
    if not settings.classes:
        raise DataError(f"{where} names classes without colours, and the masks hold {_most_of(totals, True)}; add them")
    return _one_each(list(totals), named, totals, where, True)


def _of_ids(
    totals: Totals, named: Sequence[Named], where: Path | str, settings: ImportSettings
) -> list[tuple[int, Named]]:
    """The ids that stand for classes, in the order of the classes. 255 is ignored beside others than 0."""
    binary = IGNORE in totals and totals.keys() <= {0, IGNORE}
    numbered = [(each.id, each) for each in named if each.id is not None and each.id >= 0]  # Cityscapes has a -1
    if numbered and not (binary and sorted(id_ for id_, _ in numbered) == [0, 1]):
        return numbered
    order = sorted(totals)
    ids = [value for value in order if value != IGNORE]
    if not named:
        ids = order if binary else ids
        return [(value, Named(name)) for value, name in zip(ids, _nameless(ids, totals, False), strict=True)]
    if len(named) == 1:
        named = [Named("background"), *named]
    if set(ids) <= set(range(len(named))) and not (binary and len(named) == 2):
        return list(enumerate(named))
    return _one_each(ids if len(ids) == len(named) else order, named, totals, where, False)


def _nameless(numbers: Iterable[int], totals: Totals, coloured: bool) -> list[str]:
    names = [f"class_{number}" for number in numbers]
    if len(names) > _MOST:
        raise DataError(
            f"the masks hold {len(names):,} {what(coloured)}, more than {_MOST} classes that nobody names: "
            f"{_most_of(totals, coloured)}; name them with --palette, and --snap gives smooth edges the nearest"
        )
    return names


def _one_each(
    values: Sequence[int], named: Sequence[Named], totals: Totals, where: Path | str, coloured: bool
) -> list[tuple[int, Named]]:
    """Values and names in turn."""
    if len(values) != len(named):
        text = f"the masks hold {len(values):,} {what(coloured)} and {where} has"
        names = count_of(len(named), "name", "names")
        raise DataError(f"{text} {names}: {_most_of(totals, coloured)}; name each")
    return list(zip(values, named, strict=True))


def _most_of(totals: Totals, coloured: bool) -> str:
    """The most frequent values with their counts, on one line."""
    shown = [f"{shown_as(v, coloured)} ({pixels:,} pixels in {n:,} masks)" for v, (pixels, n) in [*totals.items()][:8]]
    return ", ".join(shown) + (f" and {len(totals) - 8:,} more" if len(totals) > 8 else "")


def _images(found: Sequence[object]) -> str:
    return count_of(len(found), "image", "images")


def _masks(found: Sequence[object]) -> str:
    return count_of(len(found), "mask", "masks")

"""Images with a mask each: ids of any depth, colours, palettes, 0 and 255."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from segmv3.data.importing.base import Content, Frame, Label, Legend, Reader, SourceClass, Tell, legend_of
from segmv3.data.importing.names import Named, names_given
from segmv3.data.importing.pairs import find_pairs
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.importing.values import Seen, Totals, ids_of, read_all
from segmv3.data.listing import count_of
from segmv3.errors import DataError
from segmv3.labels import IGNORE, Color

_MOST = 64  # values that are taken for classes where nobody names them: smooth edges have hundreds
_IMAGES, _MASKS = ("image", "images"), ("mask", "masks")
_APART = 16  # between ids that compression does not mix up


@dataclass(frozen=True)
class Masks(Reader):
    """Images with a mask each, in folders of their own or side by side."""

    name = "masks"
    looks_for = "images and masks of the same names, in images/ and labels/, masks/ or annotations/, or as a_mask.png"

    def look(self, source: Path, settings: ImportSettings) -> str | None:
        if not source.is_dir():
            return None
        found = find_pairs(source, settings.masks)
        number = sum(pair.mask is not None for pair in found.pairs)
        if found.pairs and found.lone_masks and not number:
            images, masks = (count_of(len(x), *w) for x, w in ((found.pairs, _IMAGES), (found.lone_masks, _MASKS)))
            first = f"{found.pairs[0].image.name} and {found.lone_masks[0].name}"
            raise DataError(f"{source}: {images} and {masks} {found.where}, and no two of one name (first: {first})")
        return f"{count_of(number, *_IMAGES)} with masks {found.where}" if number else None

    def read(self, source: Path, settings: ImportSettings, tell: Tell) -> Content:
        found = find_pairs(source, settings.masks)
        named, where = names_given(source, settings)
        seen = read_all([pair.mask for pair in found.pairs if pair.mask], tell)
        meaning = _meaning(seen, named, where, settings)
        frames = [
            Frame(pair.image, pair.name, meaning.label(pair.mask) if pair.mask else None, split=pair.split)
            for pair in found.pairs
        ]
        lone = found.lone_masks
        left_out = [f"{count_of(len(lone), *_MASKS)} without an image (first: {lone[0]})"] if lone else []
        return Content(meaning.legend, tuple(frames), (*found.left_out, *left_out), meaning.said)


@dataclass(frozen=True)
class _Meaning:
    """What the values of masks stand for."""

    legend: Legend
    table: Mapping[int, int]
    """The value in the legend of each id or colour; others take that of the nearest."""
    seen: Seen
    coloured: bool
    stays: bool
    """Whether the ids of the masks are the values of the legend."""
    said: tuple[str, ...]

    def label(self, mask: Path) -> Label:
        if self.stays and self.seen.plain[mask]:
            return mask
        return partial(ids_of, mask, self.table, coloured=self.coloured)


def _meaning(seen: Seen, named: Sequence[Named], where: Path | str, settings: ImportSettings) -> _Meaning:
    """Raises: DataError for values that nobody names, with their counts."""
    has_colours = any(each.rgb for each in named) and not all(each.id is not None for each in named)
    own = {_packed(each.rgb): each.id for each in named if each.rgb}
    swapped = seen.palette and all(colour in own for colour in seen.palette.values())
    swapped = swapped and any(own[colour] != value for value, colour in seen.palette.items())
    known_greys = has_colours and (seen.palette or seen.colours.keys() <= own.keys())
    coloured = bool(seen.rgb or seen.palettes_differ or swapped or known_greys)
    totals = seen.colours if coloured else seen.ids
    base = _base(totals, named, where, settings, coloured)
    if not coloured and IGNORE not in (value for value, _ in base):
        base.append((IGNORE, Named("ignored", ignored=True)))
    known = [value for value, _ in base]
    if len(known) > IGNORE + 1:
        raise DataError(f"{where} names {len(known):,} {_what(coloured)}; there are 256 ids in a label file")
    if twice := next((value for i, value in enumerate(known) if value in known[:i]), None):
        raise DataError(f"{where}: {_shown(twice, coloured)} stands twice")
    said = [f"the masks hold {_what(coloured)}, named by {where}" if named else _NAMELESS.format(_what(coloured))]
    if seen.lossy and not settings.snap:
        raise DataError(
            f"{count_of(len(seen.lossy), 'mask is a JPEG', 'masks are JPEGs')} (first: {seen.lossy[0]}): compression "
            f"changes values, here to {_most_of(totals, coloured)}; --snap with --classes or --palette mends that"
        )
    others = {value: totals[value] for value in totals.keys() - set(known)}
    if others:
        gap = min((b - a for a, b in pairwise(sorted(known))), default=0)
        mendable = coloured or (gap >= _APART and max(known) <= IGNORE)
        if not (settings.snap and mendable):
            text = f"the masks hold {len(others):,} {_what(coloured)} that {where} does not name"
            hint = ", or --snap gives each pixel the nearest that is named" * mendable
            raise DataError(f"{text}: {_most_of(others, coloured)}; name them{hint}")
        pixels, total = (sum(each for each, _ in some.values()) for some in (others, totals))
        what = f"{len(others):,} other {_what(coloured)}"
        said.append(f"{pixels:,} pixels ({pixels / total:.2%}) of {what} took the nearest (--snap)")
    stays = not coloured and all(value <= IGNORE and (value < IGNORE or each.ignored) for value, each in base)
    values = {value: value if stays else number for number, value in enumerate(known)}
    if not stays and not coloured and base[-1][0] == IGNORE and base[-1][1].ignored:
        values[IGNORE] = IGNORE
    sources = [
        SourceClass(values[value], each.name, None if each.ignored else each.name, each.rgb, _shown(value, coloured))
        for value, each in base
        if value != IGNORE or coloured or value in totals
    ]
    return _Meaning(legend_of(sources, settings, where), values, seen, coloured, stays and not others, tuple(said))


_NAMELESS = "the masks hold {} and nobody names them: --classes NAME NAME ... does, in the order of the table"


def _base(
    totals: Totals, named: Sequence[Named], where: Path | str, settings: ImportSettings, coloured: bool
) -> list[tuple[int, Named]]:
    """The values that stand for classes, in the order of the classes."""
    if coloured and any(each.rgb for each in named):
        if lacking := [each.name for each in named if not each.rgb]:
            raise DataError(f"{where} gives no colour to {lacking[0]}, and the masks hold colours; add it")
        return [(_packed(each.rgb), each) for each in named if each.rgb]
    binary = totals.keys() in ({0, IGNORE}, {IGNORE})
    numbered = [(each.id, each) for each in named if each.id is not None and each.id >= 0]  # Cityscapes has a -1
    if numbered and not coloured and not (binary and sorted(each for each, _ in numbered) == [0, 1]):
        return numbered
    if len(named) == 1 and not coloured:
        named = [Named("background"), *named]
    order = sorted(totals, key=lambda value: (-totals[value][0], value)) if coloured else sorted(totals)
    if not named:
        if len(order) > _MOST:
            raise DataError(
                f"the masks hold {len(order):,} {_what(coloured)}, more than {_MOST} classes that nobody names: "
                f"{_most_of(totals, coloured)}; name them with --palette, and --snap gives smooth edges the nearest"
            )
        rest = [value for value in order if coloured or value != IGNORE or binary]
        return [
            (value, Named(f"class_{i if coloured else value}", rgb=_rgb(value) if coloured else None))
            for i, value in enumerate(rest)
        ]
    if coloured and not settings.classes:
        raise DataError(f"{where} names classes without colours, and the masks hold {_most_of(totals, True)}; add them")
    rest = [value for value in order if value != IGNORE]
    if not coloured and set(rest) <= set(range(len(named))) and not (binary and len(named) == 2):
        return list(enumerate(named))
    choice = rest if not coloured and len(rest) == len(named) else order
    if len(choice) > len(named) and settings.snap:
        most = sorted(totals, key=lambda value: (-totals[value][0], value))[: len(named)]
        choice = most if coloured else sorted(most)
    if len(choice) != len(named):
        text = (
            f"the masks hold {len(order):,} {_what(coloured)} and {where} has {count_of(len(named), 'name', 'names')}"
        )
        hint = ", or --snap takes the most frequent and gives others the nearest" * coloured
        raise DataError(f"{text}: {_most_of(totals, coloured)}; name each{hint}")
    return list(zip(choice, named, strict=True))


def _what(coloured: bool) -> str:
    return "colours" if coloured else "ids"


def _most_of(totals: Totals, coloured: bool) -> str:
    """The most frequent values with their counts, on one line."""
    order = sorted(totals, key=lambda value: (-totals[value][0], value))
    shown = [f"{_shown(v, coloured)} ({totals[v][0]:,} pixels in {totals[v][1]:,} masks)" for v in order[:8]]
    return ", ".join(shown) + (f" and {len(order) - 8:,} more" if len(order) > 8 else "")


def _shown(value: int, coloured: bool) -> str:
    return f"#{value:06x}" if coloured else str(value)


def _packed(rgb: Color) -> int:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _rgb(value: int) -> Color:
    return value >> 16, value >> 8 & 255, value & 255

"""Which frames are for training and which for scoring. Neighbouring frames of one clip are nearly the same picture:
with one on either side, a score tells what the net remembers."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from segmv3.data.importing.base import SPLITS, Frame
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.listing import count_of
from segmv3.errors import ConfigError, DataError

Splits = dict[str, list[Frame]]


@dataclass(frozen=True)
class Shared:
    """Frames by split, and what to say of it."""

    splits: Splits
    said: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def share_out(frames: Sequence[Frame], settings: ImportSettings) -> Shared:
    """Split frames: as the source does; otherwise by drives, in time or frame by frame, as the settings say.

    Args:
        frames: all with a label.
        settings: shares, seed and way.

    Raises:
        ConfigError: the pattern for drives is none.
        DataError: the shares cannot be had without neighbouring frames in two splits.
    """
    frames = sorted(frames, key=lambda frame: _natural(frame.name))
    names, how = _drives(frames, settings)
    splits = {split: own for split in SPLITS if (own := [frame for frame in frames if frame.split == split])}
    if not splits:
        return _draw(frames, names, how, settings)
    loose = [frame for frame in frames if not frame.split]
    out = [f"{count_of(len(loose), 'frame', 'frames')} in no split (first: {loose[0].name})"] if loose else []
    if list(splits) == ["train"] and settings.val + settings.test:
        drawn = _draw(splits["train"], names, how, settings)
        alone = f"the source has the split train alone: {drawn.said[0]}"
        return Shared(drawn.splits, (alone,), (*out, *drawn.left_out))
    counts = ", ".join(f"{split} {len(own):,}" for split, own in splits.items())
    said = (f"the splits of the source are kept: {counts}", *_leaks(splits, names, how))
    return Shared(splits, said, tuple(out))


def _draw(frames: Sequence[Frame], names: Mapping[Path, str], how: str, settings: ImportSettings) -> Shared:
    shares = {split: share for split, share in (("val", settings.val), ("test", settings.test)) if share}
    if not shares:
        return Shared({"train": list(frames)}, ("all frames are for training (--val 0)",))
    drives: Splits = defaultdict(list)
    for frame in frames:
        drives[names[frame.image]].append(frame)
    if settings.split_by == "frames":
        held = _single(frames, shares, settings.seed)
        said = f"split by frames with seed {settings.seed}: neighbours of one drive may be on both sides"
    elif chosen := _whole_drives(drives, shares, settings.seed):
        held = {frame.image: split for split, each in chosen.items() for drive in each for frame in drives[drive]}
        parts = [f"{split} {', '.join(each[:6])}{', ...' * (len(each) > 6)}" for split, each in chosen.items()]
        said = f"{len(drives)} drives {how}; whole ones drawn with seed {settings.seed}: {'; '.join(parts)}"
    else:
        number = count_of(len(drives), "drive", "drives")
        held = _ends(drives, shares)
        said = f"{number} {how}: the last frames of each are for {' and '.join(shares)}, behind a gap"
        if not {"train", *shares} <= {held.get(frame.image, "train") for frame in frames}:
            raise DataError(
                f"{number} {how} of {count_of(len(frames), 'frame', 'frames')}: any split would put neighbouring "
                "frames on both sides; --val 0 makes none, --split-by frames draws single frames all the same, and "
                "--drive PATTERN tells drives apart"
            )
    splits = {split: [f for f in frames if held.get(f.image, "train") == split] for split in ("train", *shares)}
    dropped = len(frames) - sum(map(len, splits.values()))
    out = (f"{count_of(dropped, 'frame', 'frames')} between the splits",) if dropped else ()
    return Shared(splits, (said,), out)


def _single(frames: Sequence[Frame], shares: Mapping[str, float], seed: int) -> dict[Path, str]:
    """The split of each frame that is not for training."""
    order = random.Random(seed).sample(list(frames), len(frames))
    held: dict[Path, str] = {}
    for split, share in shares.items():
        number = max(1, round(share * len(frames)))
        held |= {frame.image: split for frame in order[:number]}
        order = order[number:]
    if not order:
        raise DataError(f"{count_of(len(frames), 'frame leaves', 'frames leave')} none for training; --val 0")
    return held


def _whole_drives(
    drives: Mapping[str, Sequence[Frame]], shares: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Names of the drives of each split but train: in a random order, those that bring it nearer to its share.

    There are none where the drives are too few, or so long that a split would have twice its share.
    """
    if len(drives) <= len(shares):
        return {}
    left = random.Random(seed).sample(sorted(drives), len(drives))
    total, chosen = sum(map(len, drives.values())), dict[str, list[str]]()
    for number, (split, share) in enumerate(shares.items(), 1):
        have, mine = 0, list[str]()
        for drive in left:
            spare = len(left) - len(mine) > len(shares) - number + 1  # one for train, and one for each later split
            if spare and abs(have + len(drives[drive]) - share * total) < abs(have - share * total):
                have += len(drives[drive])
                mine.append(drive)
        chosen[split] = mine or [min(left, key=lambda drive: len(drives[drive]))]
        left = [drive for drive in left if drive not in chosen[split]]
        if sum(len(drives[drive]) for drive in chosen[split]) > 2 * share * total + 1:
            return {}
    return chosen


def _ends(drives: Mapping[str, Sequence[Frame]], shares: Mapping[str, float]) -> dict[Path, str]:
    """The split of the last frames of each drive; of the frames in the gap before them, an empty text."""
    held: dict[Path, str] = {}
    for own in drives.values():
        gap = max(2, len(own) // 20)
        sizes = {split: max(1, round(share * len(own))) for split, share in shares.items()}
        start = len(own) - sum(sizes.values()) - gap * len(sizes)
        if start < 2 * gap:  # too short a drive to cut
            continue
        for split, size in sizes.items():
            held |= {frame.image: "" for frame in own[start : start + gap]}
            held |= {frame.image: split for frame in own[start + gap : start + gap + size]}
            start += gap + size
    return held


def _drives(frames: Sequence[Frame], settings: ImportSettings) -> tuple[dict[Path, str], str]:
    """The drive of each image, and how it was found."""
    if settings.drive is not None:
        try:
            found = {frame.image: re.search(settings.drive, frame.name) for frame in frames}
        except re.error as error:
            raise ConfigError(f"--drive is {settings.drive}, which is no regular expression ({error})") from None
        if lost := [frame.name for frame in frames if not found[frame.image]]:
            raise DataError(f"--drive {settings.drive} finds nothing in {len(lost):,} names (first: {lost[0]})")
        return {image: match[match.re.groups and 1] or "" for image, match in found.items() if match}, "by --drive"
    if any(frame.drive for frame in frames):
        return {frame.image: frame.drive for frame in frames}, "as the source says"
    most = max(1, len(frames) // 2)  # more are no drives: a folder for each frame, a name with the time in it
    folders = {frame.image: str(PurePath(frame.name).parent) for frame in frames}
    if 1 < len(set(folders.values())) <= most:
        return folders, "by folders"
    prefixes = {frame.image: _prefix(frame.name) for frame in frames}
    while len(set(prefixes.values())) > most or any(map(_is_time, prefixes.values())):
        prefixes = {image: _prefix(name) for image, name in prefixes.items()}
    return prefixes, "by name prefix"


def _prefix(name: str) -> str:
    """`0006R0` of `0006R0_f00930`: without its last number and what joins it. Without a number, all but a letter."""
    numbered = re.fullmatch(r"(.*?)(?:[\W_]+[^\W\d_]{0,5}[\W_]*)?\d+\D*", name)
    return numbered[1] if numbered else name[:-1]


def _is_time(prefix: str) -> bool:
    """Whether a prefix ends in seconds rather than in a drive's number: they would cut a drive into its seconds."""
    number = re.search(r"\d*$", prefix)
    return bool(number and len(number[0]) >= 6 and not re.fullmatch(r"(19|20)\d{6}", number[0]))


def _leaks(splits: Splits, names: Mapping[Path, str], how: str) -> list[str]:
    """What the splits of a source share with train."""
    drives = {split: {names[frame.image] for frame in own} - {""} for split, own in splits.items()}
    shared = {split: sorted(drives[split] & drives.get("train", set())) for split in splits if split != "train"}
    return [
        f"{count_of(len(both), 'drive', 'drives')} {how} in both train and {split} (first: {both[0]}): "
        f"scores on {split} tend to be too high"
        for split, both in shared.items()
        if both
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `f9` before `f10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]

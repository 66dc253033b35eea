"""A val where the data set has none, and a smaller one where scoring all of it would take longer than training."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from segmv3.data.importing.base import Frame
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.importing.splits import share_out
from segmv3.data.listing import Split
from segmv3.data.settings import Layout
from segmv3.data.sources import SOURCES, Source
from segmv3.labels import Classes, LabelTable


@dataclass(frozen=True)
class Divided(Source):
    """A data set whose val is made of training frames, or thinned.

    Frames are held out as `segmv3 data import` splits them: whole drives where there are enough, otherwise the end of
    each drive behind a gap, never the neighbours of training frames.
    """

    layout: Layout
    """Of the data set on the disk."""
    hold_out: float = 0.0
    """Share of the training frames that becomes val. 0 leaves the val that there is."""
    most: int = 0
    """Images of val at most, evenly spaced; 0 takes all."""
    seed: int = 0
    """Of the draw of drives."""

    def title(self, root: Path) -> str:
        return SOURCES[self.layout].title(root)

    def classes(self, root: Path) -> Classes:
        return SOURCES[self.layout].classes(root)

    def table(self, root: Path) -> LabelTable:
        return SOURCES[self.layout].table(root)

    def pairs(self, root: Path, split: str) -> Iterable[tuple[Path, Path | None]]:
        return [(pair.image, pair.label) for pair in self.find(root, split).pairs]

    def find(self, root: Path, split: str) -> Split:
        if self.hold_out and split in ("train", "val"):
            whole = SOURCES[self.layout].find(root, "train")
            found = whole if whole.fault else _kept(replace(whole, name=split), self._divided(whole)[0][split])
        else:
            found = SOURCES[self.layout].find(root, split)
        names = sorted(found.images)
        if self.most and split == "val" and len(names) > self.most:
            return _kept(found, {names[place * len(names) // self.most] for place in range(self.most)})
        return found

    def told(self, root: Path) -> tuple[str, ...]:
        """How the frames are shared out, for people.

        Raises: DataError where no split keeps neighbouring frames apart.
        """
        whole = SOURCES[self.layout].find(root, "train")
        return self._divided(whole)[1] if self.hold_out and not whole.fault else ()

    def _divided(self, whole: Split) -> tuple[dict[str, set[str]], tuple[str, ...]]:
        """The names of the frames of train and of val, and what to say of it."""
        frames = [Frame(paths[0], name, None) for name, paths in sorted(whole.images.items())]
        settings = ImportSettings(val=self.hold_out, seed=self.seed)
        shared = share_out(frames, settings)
        parts = {name: {frame.name for frame in own} for name, own in shared.splits.items()}
        return parts, (*shared.said, *(f"left out {text}" for text in shared.left_out))


def _kept(found: Split, names: set[str]) -> Split:
    """A part of a split."""
    images = {name: paths for name, paths in found.images.items() if name in names}
    labels = {name: files for name, files in found.labels.items() if name in names}
    return replace(found, images=images, labels=labels)

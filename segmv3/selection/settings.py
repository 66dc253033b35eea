"""How frames are chosen for labelling. Importing this module imports no torch."""

from dataclasses import dataclass
from typing import Literal

from segmv3.errors import ConfigError
from segmv3.evaluation.settings import Settings as Scoring


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How `segmv3 data next` chooses."""

    count: int = 20
    """Frames to choose."""
    measure: Literal["entropy", "margin"] = "entropy"
    """What counts as unsure: the entropy of the probabilities, or how near the second class is to the first."""
    worst: float = 0.2
    """Share of a frame's cells, the most unsure ones, that its value is the mean of. A cell is a twelfth of the
    shorter side. The mean of the whole frame (1) hides a hard spot below much sky."""
    candidates: float = 4.0
    """The choice is made among so many times --count most unsure frames, each as far as can be from all others
    (k-centre greedy, arXiv 1708.00489). At 1 only the uncertainty counts."""
    every: int = 1
    """Look at every so many frames of the pool only: neighbours in a video are nearly the same."""
    size: tuple[int, int] | None = None
    """Show the net every picture at this height and width."""
    save: Literal["list", "copies", "links"] = "list"
    """What goes into the output beside the list: nothing, copies of the chosen images, or links to them. Frames of a
    video are written as PNG in any case."""
    overwrite: bool = False
    """Replace an earlier choice there."""

    def refuse_odd(self) -> None:
        """Raises: ConfigError for a value that nothing can be chosen with."""
        for name, lowest in (("count", 1), ("every", 1), ("candidates", 1)):
            if not getattr(self, name) >= lowest:  # nor nan
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 < self.worst <= 1:
            raise ConfigError(f"--worst is {self.worst:g}; it is a share of the cells, above 0 and at most 1")
        Scoring(size=self.size).input_size()

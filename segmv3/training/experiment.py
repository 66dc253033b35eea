"""What every experiment has, whatever it trains. Importing this module imports no torch."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from segmv3.models.nets import net_rules
from segmv3.settings import Rule, refuse
from segmv3.training.freezing import Freeze
from segmv3.training.optim import SGD, AdamW, RMSProp, Schedule

if TYPE_CHECKING:
    from segmv3.training.task import Task

TrainingPrecision = Literal["fp32", "bf16", "fp16"]
Compile = Literal["off", "auto", "on"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A net, its data, and how it is trained on them.

    Attributes:
        command: that trains it.
    """

    command: ClassVar[str]

    model: Any
    data: Any
    optim: SGD | AdamW | RMSProp = field(default_factory=SGD)
    """How a step moves the weights."""
    schedule: Schedule
    freeze: Freeze = field(default_factory=Freeze)
    precision: TrainingPrecision = "fp32"
    """Arithmetic of the training step (bf16, fp16 = autocast; fp16 needs a GPU); loss and evaluation are fp32."""
    compile: Compile = "off"
    """Whether torch.compile compiles the step. "auto" measures some steps each way and keeps the faster. Only with
    "off" does an interrupted run end in the same bits as an unbroken one."""
    recompute: bool = False
    """Whether the net's layers keep only their inputs and run again in the backward pass, with the same result. A
    larger batch fits, for a third more arithmetic (arXiv 1604.06174). Only with `compile` off."""
    seed: int = 0

    def __post_init__(self) -> None:
        refuse(*self.rules())

    def rules(self) -> list[Rule]:
        """What the settings must keep to: those of each part, and those of several parts together."""
        data = self.data
        return [
            *under("model", net_rules(self.model)),
            (data.batch_size >= 0, "data.batch-size", "must be at least 1, or 0 for the largest that fits"),
            (min(data.crop_size) >= 1, "data.crop-size", "must be at least 1 x 1"),
            (0 <= data.flip <= 1, "data.flip", "is a probability, 0 to 1"),
            (0 <= data.jitter <= 1, "data.jitter", "is a probability, 0 to 1"),
            (data.workers >= 0, "data.workers", "must be at least 0"),
            *under("schedule", self.schedule.rules(self.optim.lr)),
            *under("optim", self.optim.rules()),
            *under("freeze", self.freeze.rules()),
            (
                self.compile == "off" or not self.recompute,
                "recompute",
                "needs compile off: a compiled step chooses for itself what to compute again",
            ),
            (0 <= self.seed < 2**63, "seed", "must be at least 0 and below 2^63"),
        ]

    @abstractmethod
    def task(self) -> "Task":
        """What is trained, with its data sets opened.

        Raises:
            DataError: a data set cannot be used.
        """


def under(group: str, rules: list[Rule]) -> list[Rule]:
    """Rules of a part, named as settings of the whole."""
    return [(holds, f"{group}.{name}", wrong) for holds, name, wrong in rules]

"""A loss of your own, for a config or a script: `python examples/own_loss.py` trains a few steps with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from own_data import SideBySide, draw
from torch import Tensor, device

import segmv3
from segmv3.config import Config, Criterion, Data, Schedule
from segmv3.models.zoo import NETS
from segmv3.training.losses import Seen, Term


@dataclass(frozen=True, kw_only=True)
class Focal(Criterion):
    """Cross-entropy in which a pixel counts less, the surer the net is of it (arXiv 1708.02002)."""

    gamma: float = 2.0

    def build(self, classes: int, device: device, class_pixels: Callable[[], Tensor]) -> list[Term]:
        return [Term("focal", self.sums, denominator=lambda targets: (targets != 255).sum())]

    def sums(self, seen: Seen) -> tuple[Tensor, Tensor]:
        logits = F.interpolate(seen.logits, seen.targets.shape[1:], mode="bilinear")
        each = F.cross_entropy(logits, seen.targets.long(), ignore_index=255, reduction="none")
        return (each * (1 - (-each).exp()) ** self.gamma).sum(), (seen.targets != 255).sum()


if __name__ == "__main__":
    data = Data(dataset=SideBySide(), root=draw(Path("out/own-data")), batch_size=2, crop_size=(32, 48), workers=0)
    schedule = Schedule(steps=6, eval_every=6, log_every=2)
    config = Config(model=NETS["lraspp_small_d8"], data=data, loss=Focal(), schedule=schedule)
    print(f"{segmv3.train(config, 'out/own-loss').score:.1f} % mIoU")

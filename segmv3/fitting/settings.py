"""How a net is fitted to a device. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segmv3.models.backbones import MobileNetV3
from segmv3.settings import refuse
from segmv3.training.experiment import Experiment
from segmv3.training.freezing import Freeze

Runtime = Literal["torch", "onnxruntime", "openvino"]


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """NetAdapt (Yang et al., arXiv 1804.03230), as section 4 of the MobileNetV3 paper (arXiv 1905.02244) has it."""

    budget_ms: float
    """Latency to reach, milliseconds for one image."""
    size: tuple[int, int] | None = None
    """Height and width of the image. [512 1024; a classifier's crop]"""
    runtime: Runtime = "openvino"
    """What runs the net, in fp32 on the CPU."""
    step_share: float = 0.025
    """Share of the latency at the start that each step saves; the paper takes 0.01."""
    shortlist: int = 2
    """Proposals of a step that are fine-tuned: those with the best ratio as they are cut. 0 takes all, as the paper."""
    short_steps: int = 100
    """Optimiser steps that a proposal is fine-tuned for; the paper takes 10,000."""
    long_steps: int | None = None
    """Optimiser steps of the last fine-tuning. [schedule.steps of the config]"""
    lr_share: float = 0.3
    """Share of the config's learning rate that fine-tuning takes."""
    least_share: float = 0.25
    """Share of its channels that each layer keeps in any case, 8 at least."""
    force: bool = False
    """Measure although other programs use the machine."""

    def __post_init__(self) -> None:
        refuse(
            (self.budget_ms > 0, "--budget-ms", "must be above 0"),
            (self.size is None or min(self.size) >= 32, "--size", "must be at least 32 x 32"),
            (0 < self.step_share < 1, "--step-share", "must be above 0 and below 1"),
            (self.shortlist >= 0, "--shortlist", "must be at least 1, or 0 for all proposals"),
            (self.short_steps >= 1, "--short-steps", "must be at least 1"),
            (self.long_steps is None or self.long_steps >= 1, "--long-steps", "must be at least 1"),
            (0 < self.lr_share <= 1, "--lr-share", "must be above 0 and at most 1"),
            (0 < self.least_share <= 1, "--least-share", "must be above 0 and at most 1"),
        )

    def short(self, config: Experiment, net: Any, start: Path) -> Experiment:
        """The experiment that fine-tunes a proposal.

        Args:
            config: the user's.
            net: settings of the narrower net.
            start: its weight file.
        """
        return self._fine_tuned(config, net, start, self.short_steps, self.short_steps, ema=0.0)

    def long(self, config: Experiment, net: Any, start: Path) -> Experiment:
        """The experiment that fine-tunes the fitted net at the end, as `short`."""
        schedule = config.schedule
        steps = self.long_steps or schedule.steps
        return self._fine_tuned(config, net, start, steps, min(schedule.eval_every, steps), ema=schedule.ema)

    def _fine_tuned(
        self, config: Experiment, net: Any, start: Path, steps: int, eval_every: int, *, ema: float
    ) -> Experiment:
        lr = config.optim.lr * self.lr_share
        schedule = replace(
            config.schedule,
            steps=steps,
            eval_every=eval_every,
            warmup_steps=min(config.schedule.warmup_steps, steps // 10),
            warmup_from=min(config.schedule.warmup_from, lr),
            min_lr=min(config.schedule.min_lr, lr),
            ema=ema,
            patience=0,
        )
        net = replace(net, pretrained=str(start))
        return replace(config, model=net, optim=replace(config.optim, lr=lr), schedule=schedule, freeze=Freeze())


def can_be_fitted(backbone: Any) -> str:
    """Why the layers of a backbone cannot be narrowed one by one; empty where they can."""
    if not isinstance(backbone, MobileNetV3):
        return f"a net on {backbone.title} has no exact widths; fit takes MobileNetV3 backbones"
    if backbone.family in ("showlo", "sqlai"):
        return f"the family {backbone.family} has no other widths"
    return ""

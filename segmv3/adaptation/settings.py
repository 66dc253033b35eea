"""How a net is adapted. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from segmv3.config import AdamW, Config, Data, Loss, Model, Schedule
from segmv3.settings import refuse


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Rounds of self-training: the net labels the frames, a student learns from the labels, its moving average is the
    net of the next round (CBST, arXiv 1810.07911; mean teachers, arXiv 1703.01780)."""

    rounds: int = 2
    """Times that the frames are labelled and learned from."""
    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Sizes, as shares of the frame's, that a frame is labelled at, each as it is and mirrored; the mean counts."""
    steps: int = 600
    """Optimiser steps of a round."""
    lr: float = 2e-3
    """The highest learning rate, of AdamW; it falls by a cosine."""
    batch_size: int = 8
    """Crops per step, those of --source included."""
    crop_size: tuple[int, int] | None = None
    """Height and width of a crop; two thirds of the smallest frame by default, at most 512x1024."""
    source_share: float = 0.5
    """Share of the crops that is drawn from --source, which has true labels. Nothing is forgotten that way (DACS, arXiv
    2007.08702, and DAFormer, arXiv 2111.14887, take half)."""
    portion: float = 0.66
    """Share of the pixels of each class that is learned from, the surest. One bar for all classes would leave rare ones
    out (CBST; 0.66 as in FDA, arXiv 2004.05498)."""
    sure: float = 0.9
    """Pixels with at least this confidence are learned from beyond that share (as in FDA)."""
    class_weights: bool = True
    """Whether each class counts as in the training of the net, where its file names the weights."""
    ema: float = 0.99
    """Decay of the moving average of the weights."""
    every: int = 1
    """Take every so many frames only."""
    seed: int = 0

    def __post_init__(self) -> None:
        several = bool(self.scales) and 0 < min(self.scales) <= max(self.scales) <= 4
        refuse(
            (self.rounds >= 1, "--rounds", "must be at least 1"),
            (several, "--scales", "must be shares of the size, above 0 and at most 4"),
            (self.batch_size >= 2, "--batch-size", "must be at least 2"),
            (0 < self.source_share < 1, "--source-share", "must be above 0 and below 1"),
            (0 < self.portion <= 1, "--portion", "is a share of the pixels, above 0 and at most 1"),
            (0 < self.sure <= 1, "--sure", "is a confidence, above 0 and at most 1"),
            (self.every >= 1, "--every", "must be at least 1"),
        )
        self.config(1, Model(), Data(dataset="folder", root=Path()), Loss())  # refuses what no training can be

    def config(self, number: int, model: Model, data: Data, loss: Loss) -> Config:
        """Round `number` as an ordinary experiment."""
        return Config(
            model=model,
            data=replace(data, batch_size=self.batch_size, crop_size=self.crop_size or data.crop_size),
            loss=loss,
            optim=AdamW(lr=self.lr, weight_decay=0.05),
            schedule=Schedule(
                steps=self.steps,
                policy="cosine",
                min_lr=min(1e-5, self.lr),
                warmup_steps=self.steps // 10,
                eval_every=self.steps,
                save_every=100,
                ema=self.ema,
            ),
            seed=self.seed + number,
        )

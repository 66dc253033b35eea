"""How a net is scored. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segmv3.config import Precision
from segmv3.errors import ConfigError

Size = tuple[int, int]
"""Height and width, pixels."""

LARGEST_SCALE = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a net is scored, and on which images."""

    multi_scale_flip: bool = False
    """Average six scales and their mirror images, as in the mmsegmentation table."""
    sliding_window: tuple[int, int] | None = None
    """Run the net on overlapping windows of this height and width, and average their logits."""
    stride: tuple[int, int] | None = None
    """Rows and columns between windows; two thirds of the window by default."""
    size: tuple[int, int] | None = None
    """Show the net every image at this height and width; its logits are enlarged to the ground truth."""
    scale: float | None = None
    """Show the net every image at this share of its height and width, such as 0.5."""
    official: bool = False
    """Also run the Cityscapes script on the predictions, and refuse to report when it disagrees."""
    boundary: bool = False
    """Also measure boundary IoU and boundary F-score."""
    calibration: bool = False
    """Also measure whether the net is right as often as it is sure (ECE); writes a plot beside --output."""
    split: str = "val"
    """Part of the data set to score."""
    limit: int | None = None
    """Score only the first N images."""
    precision: Precision | None = None
    """Arithmetic of the net; fp32 by default, and an export's own."""

    def refuse_contradictions(self) -> None:
        """Raise an error for settings that cannot be meant, or do not go together.

        Raises:
            ConfigError: one line that names the flags.
        """
        if self.calibration and (self.multi_scale_flip or self.sliding_window):
            raise ConfigError("--calibration is for single scale; leave out --multi-scale-flip and --sliding-window")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}; it must be at least 1")
        resized = self.input_size()
        if self.stride and not self.sliding_window:
            raise ConfigError("--stride needs --sliding-window HEIGHT WIDTH")
        if self.multi_scale_flip and self.sliding_window:
            raise ConfigError("--multi-scale-flip and --sliding-window are two ways to score; choose one of them")
        if self.sliding_window and resized:
            raise ConfigError("--sliding-window cuts images as they are; leave out --size and --scale")
        if self.sliding_window:
            from segmv3.inference import check_window

            check_window(*self.window())

    def window(self) -> tuple[Size, Size]:
        """Window and stride, for settings that have a window."""
        from segmv3.inference import default_stride

        assert self.sliding_window
        return self.sliding_window, self.stride or default_stride(self.sliding_window)

    def input_size(self) -> Callable[[Size], Size] | None:
        """Size at which the net sees an image; None for the image's own.

        Raises:
            ConfigError: a size that cannot be meant.
        """
        from segmv3.images import MAX_PIXELS
        from segmv3.inference import scaled_size

        size, scale = self.size, self.scale
        if size and scale is not None:
            raise ConfigError("--size and --scale are two ways to say the size of the net's input; choose one of them")
        if size:
            if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
                shown = f"{size[0]} {size[1]}"
                raise ConfigError(f"--size is {shown}; both are at least 1, and at most {MAX_PIXELS:,} pixels")
            return lambda _: size
        if scale is None:
            return None
        if not 0 < scale <= LARGEST_SCALE:
            raise ConfigError(f"--scale is {scale:g}; it must be above 0 and at most {LARGEST_SCALE}")
        return lambda size: scaled_size(size, scale)

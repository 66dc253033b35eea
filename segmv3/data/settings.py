"""What a config says of its data set, and which sources of your own it may name. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from segmv3.errors import ConfigError
from segmv3.settings import Rule, written_at

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

Layout = Literal["cityscapes", "camvid", "folder"]
"""The sources that flags can name; `segmv3.data.sources` has them."""


@runtime_checkable
class DataSource(Protocol):
    """A data set of your own: an object of a subclass of `segmv3.data.sources.Source`."""

    def classes(self, root: Path) -> Any:
        """The classes, as `segmv3.labels.Classes`."""

    def pairs(self, root: Path, split: str) -> Any:
        """The (image, label) paths of a split."""

    def find(self, root: Path, split: str) -> Any:
        """What lies on the disk; `Source` has it."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images and labels come from and how a training sample is cut from them."""

    dataset: Layout | DataSource
    """Layout on disk; see data/README.md."""
    root: Path
    """The folder that holds the data set."""
    cache: Path | None = None
    """Folder that `segmv3 data pack` wrote: crops are read from it, the same ones, without decoding files."""
    batch_size: int = 16
    """Images per step over all processes together; 0 finds the largest batch that fits into memory. Trial steps fill
    90 % of a GPU, or half of what is free on a CPU, with at most the training set; the run keeps the number."""
    crop_size: tuple[int, int] = (512, 1024)
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Random resize before the crop, uniform. Small crops of Cityscapes did better with 0.4 to 1.6 (RegSeg, arXiv
    2111.09957, its logs: 0.7 to 1.2 points at 500 epochs)."""
    cat_max_ratio: float = 0.75
    """A crop is drawn again (up to 10 times) while one class covers more of its labelled pixels than this."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of photometric jitter (brightness, contrast, saturation, hue)."""
    photometric: Literal["jitter", "randaugment"] = "jitter"
    """Kind of that jitter: all four mildly, or two random ones of nine at any strength (RandAugment, arXiv 1909.13719):
    those four, gamma, posterize, solarize, stretched contrast, a gain for each channel."""
    class_uniform: float = 0.0
    """Share of the samples whose crop shows a random pixel of a class drawn uniformly. Nets then see trains as often
    as roads (Zhu et al., arXiv 1812.01593, section 3; RegSeg takes 0.5)."""
    copy_paste: float = 0.0
    """Probability that pieces of rare classes (under 2 % of the labelled pixels) of another training image are pasted
    in before the crop: more of what is seen least (arXiv 2012.07177). Without data.cache that decodes two images."""
    extra_images: Path | None = None
    """More images, with coarse or predicted labels: often worth more than any augmentation (noisy student, arXiv
    1911.04252; Cityscapes' train_extra). Without labels they teach what a teacher of `distill` knows."""
    extra_labels: Path | None = None
    """Their labels: a folder that `segmv3 predict --save labels` wrote, or named as the data set names its own."""
    extra_share: float = 0.5
    """Share of the samples that is drawn from the extra images, where there are any."""
    workers: int = 2
    """Processes that prepare samples; the batches are the same for any number of them."""

    def __post_init__(self) -> None:
        if lack := _lack(self.dataset):
            raise ConfigError(f"data.dataset: {lack}")


def _lack(source: object) -> str:
    """What keeps an object from being a data source, with the place where its class is written; empty for nothing."""
    if isinstance(source, str):
        return "" if source in get_args(Layout) else f"{source!r} is none of {', '.join(get_args(Layout))}"
    kind = source if isinstance(source, type) else type(source)
    place = written_at(kind)
    if isinstance(source, type):
        return f"{kind.__name__}{place} is a class; give an object of it, {kind.__name__}()"
    for name, call in (("classes", "classes(root)"), ("pairs", "pairs(root, split)")):
        method = getattr(source, name, None)
        if not callable(method) or getattr(method, "__isabstractmethod__", False):
            return f"{kind.__name__}{place} has no method {call}, which a data source needs"
    fits = isinstance(source, DataSource)
    return "" if fits else f"{kind.__name__}{place} must derive from segmv3.data.sources.Source"


def data_rules(data: Data) -> list[Rule]:
    low, high = data.scale_range
    return [
        (0 < low <= high, "data.scale-range", "must be two rising positive numbers"),
        (0 < data.cat_max_ratio <= 1, "data.cat-max-ratio", "must be above 0 and at most 1"),
        (0 <= data.class_uniform <= 1, "data.class-uniform", "is a share of the samples, 0 to 1"),
        (0 <= data.copy_paste <= 1, "data.copy-paste", "is a probability, 0 to 1"),
        (
            data.extra_images is not None or data.extra_labels is None,
            "data.extra-images",
            "is missing: extra labels need their images",
        ),
        (0 < data.extra_share <= 1, "data.extra-share", "is a share of the samples, above 0 and at most 1"),
    ]


def flag_rules() -> "ConstructorRegistry":
    """How tyro reads the flags that it cannot read by their types.

    `--data.dataset` takes the name of a layout. A data source of your own is what a config file holds.
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def layout(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != Layout | DataSource:
            return None
        names = get_args(Layout)
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(names)}}}",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: value in names or isinstance(value, DataSource),
            str_from_instance=lambda value: [str(value)],
            choices=names,
        )

    return registry

"""Which weights fine-tuning starts from, and the net that follows from them."""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from segmv3.config import LRASPPPlus, MobileNetV3, Model
from segmv3.errors import CheckpointError
from segmv3.models.zoo import NETS
from segmv3.screen import print_line
from segmv3.weights.importing import Imported
from segmv3.weights.names import published
from segmv3.weights.opening import open_weights

USUAL = {"cpu": "paddleseg/mobileseg_large", "cuda": "paddleseg/lraspp_large_os8_large_kernel"}
"""The published net that is taken when none is named, by device: the best for streets whose score counts. On a CPU it
is the one at stride 32 (70.13), with a quarter of the arithmetic of the one at stride 8 (73.19)."""

_SMALL_IMAGE = 600  # pixels of the shorter side, up to which a pole is a few pixels wide


@dataclass(frozen=True)
class Start:
    """The net that is trained, and where its weights come from."""

    net: Model
    """With `pretrained` set, where there are weights."""
    names: tuple[str, ...]
    """The classes that the weights know; empty for none, and for a backbone."""
    told: str
    """For people: the weights, their score and licence, or why there are none."""

    def kept(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The classes of the data whose rows of the classifier are copied."""
        return tuple(name for name in classes if name in self.names)


def start_for(source: str | None, device: str, size: tuple[int, int]) -> Start:
    """The start that is asked for, or else the best one that can be had.

    Args:
        source: a weight file or a published name; None takes the usual published net, and new weights where it cannot
            be had.
        device: `cpu` or `cuda`.
        size: height and width of the images.

    Raises: CheckpointError for a source that is named and cannot be used.
    """
    if source:
        return _start(source, open_weights(source, say=print_line), size)
    name = USUAL[device]
    try:
        return _start(name, open_weights(name, say=print_line), size)
    except CheckpointError as error:
        said = re.sub(r"\S+://\S+ ", "", str(error.args[0])).replace(f"{name} ", "")
        reason = f"{name} {said.partition('; set SEGMV3')[0].partition('; run without')[0]}"
    for other in (each.name for each in published().values() if each.trained_on.startswith("Cityscapes")):
        with suppress(CheckpointError):  # it is not in the cache either
            found = _start(other, open_weights(other, offline=True, say=print_line), size)
            return replace(found, told=f"{found.told}; {reason}")
    return Start(fresh_net(size), (), f"new weights, which take longer; {reason}")


def _start(name: str, imported: Imported, size: tuple[int, int]) -> Start:
    if isinstance(imported.net, Model):
        net, what = imported.net, "a net for streets" if "road" in imported.names else "a segmentation net"
    else:
        net = replace(fresh_net(size), backbone=replace(imported.net.backbone, last=False))
        what = "a backbone under a new head"
    return Start(replace(net, pretrained=_place(name)), _names(imported), f"{name}, {what} ({_facts(imported)})")


def fresh_net(size: tuple[int, int]) -> Model:
    """The net without a start: the plus head on MobileNetV3-Small, with 1/4 features for small images."""
    plus = NETS["lraspp_small_plus"]
    return replace(plus, head=LRASPPPlus(finest=4, channels=64)) if min(size) <= _SMALL_IMAGE else plus


def freezes(net: Model) -> bool:
    """Whether the stages of its backbone can be frozen, and have features for auxiliary heads."""
    return isinstance(net.backbone, MobileNetV3)


def _names(imported: Imported) -> tuple[str, ...]:
    return imported.names if isinstance(imported.net, Model) else ()


def _place(name: str) -> str:
    """A file by a path that holds from any folder, a published name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _facts(imported: Imported) -> str:
    origin = imported.origin
    score = origin.get("published") or _own_score(imported.facts)
    licence = cast(str, origin.get("licence", "no licence recorded"))
    return "; ".join(filter(None, (score, licence, f"SHA-256 {origin['sha256'][:12]}")))


def _own_score(facts: dict[str, Any]) -> str:
    score = facts.get("score")
    found = score.get("miou") if isinstance(score, dict) else None
    return f"mIoU {found:.2f} on {score['dataset']} {score['split']}" if score and isinstance(found, float) else ""

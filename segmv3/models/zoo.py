"""The named nets, and the one way to build a net."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from segmv3.config import Config, Model
from segmv3.errors import ModelError
from segmv3.models.segmenter import Segmenter

NETS: Mapping[str, Model] = MappingProxyType(
    {
        "lraspp_large_d8": Model(size="large"),  # paper, table 7 row 8: 1.51 M parameters
        "lraspp_small_d8": Model(size="small"),  # paper, table 7 row 11: 0.47 M parameters
    }
)


def net(name: str) -> Model:
    """The settings of a named net.

    Raises: ModelError naming the nearest names.
    """
    if name in NETS:
        return NETS[name]
    near = difflib.get_close_matches(name, NETS, n=3, cutoff=0.4) or list(NETS)
    raise ModelError(f"there is no net {name!r}; did you mean {' or '.join(near)}?")


def net_name(model: Model) -> str:
    """The name of a net with these settings, or a description where it has none."""
    named = next((name for name, settings in NETS.items() if settings == model), None)
    return named or f"lraspp_{model.size} (tail {model.tail}, output stride {model.output_stride}, custom settings)"


def create_model(name_or_config: str | Model | Config, num_classes: int = 19) -> Segmenter:
    """Build a net with fresh weights.

    Args: name_or_config: a name from `NETS`, settings of one's own, or a whole experiment, of which the net counts.
    Raises: ModelError for an unknown name or a class count below 1.
    """
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; it must be at least 1")
    if isinstance(name_or_config, str):
        return Segmenter(net(name_or_config), num_classes)
    return Segmenter(name_or_config.model if isinstance(name_or_config, Config) else name_or_config, num_classes)

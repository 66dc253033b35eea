"""Every setting of an experiment, as frozen dataclasses, and the way from a config file to one of them.

A config is a Python file that builds `config = Config(...)`. The same dataclasses become command-line flags,
so `--optim.lr 0.02` overrides the file. Sizes and scales are (height, width).
"""

import dataclasses
import json
import runpy
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from segmv3.data.settings import Data, DataSource, Layout, data_rules, flag_rules
from segmv3.errors import ConfigError
from segmv3.models.backbones import Backbone, MobileNetV2, MobileNetV3, Tap, Timm
from segmv3.models.heads import LRASPP, RASPP, Head, LRASPPDecoder, LRASPPPlus, MobileSeg
from segmv3.models.nets import Classifier, Detector, Model, net_from_dict, net_rules
from segmv3.settings import Rule, has_type, mistyped, to_dict
from segmv3.training.experiment import Compile, Experiment, TrainingPrecision, under
from segmv3.training.freezing import Freeze
from segmv3.training.losses import Criterion, Distill, Loss
from segmv3.training.optim import SGD, AdamW, RMSProp, Schedule

if TYPE_CHECKING:
    from segmv3.training.task import Task

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
AnyBackend = Literal["auto", "torch", "onnxruntime", "openvino"]
AnyPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

__all__ = [  # noqa: RUF022 - by lines
    "LRASPP", "RASPP", "SGD", "AdamW", "AnyBackend", "AnyPrecision", "Backbone", "Classifier", "Detector", "Compile",
    "Config", "Criterion", "Data", "DataSource", "Layout", "data_rules", "flag_rules",
    "Device", "Distill", "Experiment", "Freeze", "Head", "LRASPPDecoder", "LRASPPPlus", "Loss", "MobileNetV2",
    "MobileNetV3", "MobileSeg", "Model", "Precision", "RMSProp", "Schedule", "Tap", "Timm", "TrainingPrecision",
    "has_type", "load_config", "load_parts", "mistyped", "net_from_dict", "net_rules", "to_dict",
    "BoxData", "Classification", "Detection", "Divided", "ImageFolder",  # noqa: F822 - of `__getattr__`
]  # fmt: skip
_ELSEWHERE = {
    "BoxData": "segmv3.detection.settings",
    "Detection": "segmv3.detection.settings",
    "Classification": "segmv3.imagenet.settings",
    "Divided": "segmv3.data.division",
    "ImageFolder": "segmv3.imagenet.settings",
}


def __getattr__(name: str) -> Any:
    """Settings that live above this module: those of classification and detection, and a data set's own division."""
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module 'segmv3.config' has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class Config(Experiment):
    """One segmentation experiment."""

    command = "segmv3 train"

    model: Model
    data: Data
    loss: Criterion = field(default_factory=Loss)
    distill: Distill = field(default_factory=Distill)

    def rules(self) -> list[Rule]:
        if not isinstance(self.loss, Criterion):
            kind = type(self.loss).__name__
            return [(False, "loss", f"{kind} is no loss; derive it from segmv3.config.Criterion")]
        return [
            *super().rules(),
            *data_rules(self.data),
            *under("loss", self.loss.rules()),
            *under("distill", self.distill.rules()),
            (
                self.distill.features is None or self.compile == "off",
                "distill.features",
                "needs compile off: a compiled step does not look at features inside of the net",
            ),
            (
                self.data.extra_images is None or self.data.extra_labels is not None or self.distill.taught,
                "data.extra-labels",
                "is missing: extra images without labels teach only with distill.teacher or distill.features",
            ),
        ]

    def task(self) -> "Task":
        return import_module("segmv3.training.segmentation").SegmentationTask(self)


Kind = TypeVar("Kind", bound=Experiment)


@overload
def load_config(path: Path | str, overrides: list[str] | None = None) -> Config: ...


@overload
def load_config(path: Path | str, overrides: list[str] | None = None, kind: type[Kind] = ...) -> Kind: ...


def load_config(path: Path | str, overrides: list[str] | None = None, kind: type[Any] = Config) -> Any:
    """Run a config file and apply command-line overrides to the `config` it builds.

    Args:
        path: the config file, which is Python and runs, or the name of one that comes with segmv3.
        overrides: flags such as `["--optim.lr", "0.02"]`. An unknown or ill-typed one ends the program with a hint and
            exit code 2.
        kind: `Config`, `Classification` or `Detection`.

    Returns:
        The experiment, an instance of `kind`.

    Raises:
        ConfigError: there is no such file, it fails, or it builds no `config` of this kind.
    """
    path = find_config(path)
    _import_from(path.parent)
    try:
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a config is the user's own code: whatever it raises is theirs to read
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}{_place(error, path)}") from None
    if not isinstance(config, kind):
        if isinstance(config, Experiment):
            raise ConfigError(f"{path} is an experiment for `{config.command}`")
        raise ConfigError(f"{path} must set `config = {kind.__name__}(...)`")
    if not overrides:
        return config
    import tyro

    marks = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(kind, default=config, args=overrides, config=marks, registry=flag_rules())


def find_config(path: Path | str) -> Path:
    """The file of a config.

    Args:
        path: a file, or the name of a config that comes with segmv3, such as recipes/camvid_best.

    Raises:
        ConfigError: there is neither; the message names the nearest.
    """
    path = Path(path)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".py")
    ours = _configs() / f"{name}.py"
    if ours.is_file() and not path.is_absolute():
        return ours
    folder = path if path.is_dir() else path.parent
    known = sorted(p.name for p in folder.glob("*.py")) if path.suffix or path.is_dir() else []
    near = get_close_matches(name, config_names(), n=3, cutoff=0.5)
    hint = f"; {folder} has {', '.join(known)}" if known else f"; did you mean {' or '.join(near)}?" if near else ""
    if (path / "images").is_dir() or (path / "leftImg8bit").is_dir():
        hint = f"; segmv3 finetune {path} makes a config for a data set"
    raise ConfigError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}{hint}")


def config_names() -> list[str]:
    """The configs that come with segmv3, by name."""
    folder = _configs()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.py"))


def _configs() -> Path:
    """Inside the installed package, or beside it in a clone."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_parts(path: Path) -> None:
    """Import a Python file that defines heads or backbones, so that weight files that name them can be opened.

    Raises:
        ConfigError: there is no such file, or it fails; the message names the line.
    """
    if not path.is_file():
        raise ConfigError(f"--parts {path} {'is a folder' if path.is_dir() else 'does not exist'}; name a Python file")
    _import_from(path.parent)
    try:
        import_module(path.stem)
    except (Exception, SystemExit) as error:  # it is the user's own code
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}{_place(error, path)}") from None


def _import_from(folder: Path) -> None:
    """Let parts of the user's own be imported from beside a file, as for a script; worker processes get it too."""
    beside = str(folder.resolve())
    if sys.path[:1] != [beside]:
        sys.path.insert(0, beside)


def _place(error: BaseException, config: Path) -> str:
    """Where in the user's own files an error began, unless it is the config itself and a line says it."""
    if isinstance(error, SyntaxError):
        return ""  # its text names file and line
    folder = config.resolve().parent
    own = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).resolve().parent == folder]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def standalone(config: Experiment, name: str) -> str:
    """A config file with every setting that is not the default.

    Args:
        config: the experiment.
        name: for the docstring.
    """
    kinds: dict[str, set[str]] = {}
    body = _source(config, kinds)
    imports = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(kinds.items())]
    return f"{headline(name)}\n\n" + "\n".join(imports) + f"\n\nconfig = {body}\n"


def headline(name: str) -> str:
    """The first line of such a file."""
    return f'"""{json.dumps(name, ensure_ascii=not name.isprintable())[1:-1]}, to be edited."""'


def _source(value: Any, kinds: dict[str, set[str]], indent: str = "") -> str:
    """A value as Python. The names that it needs go into `kinds`, by their module."""
    if isinstance(value, Path):
        kinds.setdefault("pathlib", set()).add("Path")
        return f"Path({_source(str(value), kinds)})"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=not value.isprintable())
    if not dataclasses.is_dataclass(value):
        return repr(value)
    kind = type(value)
    module = "segmv3.config" if kind.__module__.startswith("segmv3.") else kind.__module__
    kinds.setdefault(module, set()).add(kind.__name__)
    inner = f"{indent}    "
    lines = [
        f"{inner}{field.name}={_source(getattr(value, field.name), kinds, inner)},\n"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != _default(field)
    ]
    return f"{kind.__name__}(\n{''.join(lines)}{indent})" if lines else f"{kind.__name__}()"


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

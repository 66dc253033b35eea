"""Weights on the Hugging Face Hub: fetched by `hub:USER/NAME`, published with a card. Nothing else contacts it.

huggingface_hub does the work. Its environment variables hold: `HF_ENDPOINT` (another hub), `HF_HOME` (its cache),
`HF_TOKEN`, `HF_HUB_OFFLINE`. What it tells of the machine beside its own version is left out.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segmv3 import checkpoint
from segmv3.errors import CheckpointError, ResourceError, printable
from segmv3.models.count import parameters
from segmv3.models.nets import Part
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import net_name
from segmv3.records import read_json, typed
from segmv3.weights.download import is_offline

PREFIX = "hub:"
"""Begins the names of weights on the Hub, wherever weights are named."""
FILE = "model.safetensors"
_DATA_LICENCES = {"cityscapes": "Cityscapes' licence: research, no commercial use, weights trained on it included"}


@dataclass(frozen=True)
class _Best:
    """The facts of a run's best weights that a card needs of the manifest."""

    sha256: str
    score: float
    step: int
    split: str
    images: int


def pull(name: str, *, revision: str | None = None, token: str | bool | None = None, offline: bool = False) -> Path:
    """The weight file of a net on the Hub, from huggingface_hub's cache or the network, its digest checked.

    Args:
        name: USER/NAME, with `hub:` before it or not, and `@REVISION` behind it or not.
        revision: branch, tag or commit; by default that of the name, else main.
        token: as huggingface_hub takes it; by default the one that the user logged in with.
        offline: take it from the cache alone; `SEGMV3_OFFLINE=1` does so, too.

    Returns:
        The file in the cache.

    Raises:
        CheckpointError: there is no such net or revision, no network, or the file is not what the Hub says.
        ResourceError: huggingface_hub is not installed.
    """
    name, _, named = name.partition("@")
    repo = repository(name)
    with _in_one_line(repo, revision or named) as hub:
        found = hub.hf_hub_download(
            repo,
            FILE,
            revision=revision or named or None,
            token=token,
            local_files_only=is_offline(offline),
            library_name="segmv3",
            library_version=checkpoint.package_version(),
        )
    path, blob = Path(found), Path(found).resolve()
    data = checkpoint.file_bytes(path, checkpoint.MAX_BYTES, "of segmv3")
    told = {64: hashlib.sha256(data), 40: hashlib.sha1(b"blob %d\0" % len(data) + data)}.get(len(blob.name))
    if told and re.fullmatch("[0-9a-f]+", blob.name) and told.hexdigest() != blob.name:
        blob.unlink()
        raise CheckpointError(f"{PREFIX}{repo}: the file is not the one that the Hub names (digest); fetch it again")
    return path


def push(
    weights: Path | str,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    licence: str | None = None,
    data_licence: str | None = None,
    parts: tuple[Part, ...] = (),
) -> str:
    """Publish a weight file as it is, with a card, and the manifest of its run where that lies beside it.

    Args:
        weights: a weight file of segmv3, or the folder of a run.
        name: USER/NAME, with `hub:` before it or not. It is made where it does not exist.
        private: whether a new one is; None is the user's own default.
        revision: branch to write to.
        token: as huggingface_hub takes it.
        licence: of the weights, by its short name, such as "apache-2.0"; the card names none without.
        data_licence: of the data that they were trained on, in words.
        parts: classes of the net's head and backbone where they are not segmv3's own.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: for a file that is no segmentation net of segmv3, and where the Hub refuses.
        ResourceError: huggingface_hub is not installed.
    """
    path, repo = weight_file(weights), repository(name)
    card = model_card(path, repo, licence=licence, data_licence=data_licence, parts=parts)
    content = {FILE: path.read_bytes(), "README.md": card.encode()}
    if _manifest(path, hashlib.sha256(content[FILE]).hexdigest()):
        content["manifest.json"] = (path.parent / "manifest.json").read_bytes()
    with _in_one_line(repo, revision or "") as hub:
        api = hub.HfApi(token=token, library_name="segmv3", library_version=checkpoint.package_version())
        api.create_repo(repo, private=private, exist_ok=True)
        additions = [hub.CommitOperationAdd(file, data) for file, data in content.items()]
        return str(api.create_commit(repo, additions, commit_message="Weights of segmv3", revision=revision).commit_url)


def open_net(
    source: Path | str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    parts: tuple[Part, ...] = (),
) -> Segmenter:
    """What `Segmenter.from_pretrained` does."""
    local = Path(source).exists()
    path = Path(source) if local else pull(str(source), revision=revision, token=token, offline=local_files_only)
    model, card = checkpoint.load(weight_file(path), parts)
    model.origin = weight_file(path), card
    return model


def push_net(model: Segmenter, name: str, *, classes: Any = None, **options: Any) -> str:
    """What `Segmenter.push_to_hub` does."""
    parts: tuple[Part, ...] = (type(model.config.backbone), type(model.config.head))
    path, card = model.origin or (None, None)
    if path and card and classes is None:
        tensors = checkpoint.read(path, parts).tensors
        if all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items()):
            return push(path, name, parts=parts, **options)
        classes = card.classes
    if classes is None:
        raise CheckpointError("this net has no class names: push_to_hub(..., classes=[...]) gives them")
    with TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        checkpoint.save(model, file, classes=classes)  # nothing has scored it
        return push(file, name, parts=parts, **options)


def repository(name: str) -> str:
    """USER/NAME, with `hub:` before it or not.

    Raises:
        CheckpointError: it is no such name.
    """
    repo = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise CheckpointError(f"{PREFIX}{repo} is no name of a net on the Hub; such a name is USER/NAME")
    return repo


def weight_file(weights: Path | str) -> Path:
    """The file itself, or the best one of a run's folder."""
    path = Path(weights)
    return path / "best.safetensors" if path.is_dir() else path


def model_card(
    path: Path, repo: str, *, licence: str | None = None, data_licence: str | None = None, parts: tuple[Part, ...] = ()
) -> str:
    """What README.md says of weights on the Hub, as Markdown: made from the file itself and its run's manifest.

    Raises:
        CheckpointError: the file is no segmentation net of segmv3.
    """
    from jinja2 import ChainableUndefined, Environment

    hub = _library()
    model, card = checkpoint.load(path, parts)

    def fact(values: Any, name: str) -> dict[str, Any]:
        found = values.get(name)
        return found if isinstance(found, dict) else {}

    config, score = fact(card.facts, "config"), fact(card.facts, "score")
    data = fact(config, "data")
    header = hub.ModelCardData(license=licence, library_name="segmv3", pipeline_tag="image-segmentation")
    environment = Environment(undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    template = environment.from_string(files("segmv3.weights").joinpath("card.md").read_text(encoding="utf-8"))
    shown = template.render(
        {"header": _Plain(header.to_yaml()), "repo": repo, "address": _Plain(repo), "sha256": card.sha256},
        net=net_name(model.config),
        size=f"{parameters(model):,}",
        classes=card.classes,
        score=score if isinstance(score.get("miou"), float) else {},
        facts=card.facts,
        data=data,
        start=fact(card.facts, "pretrained") or fact(card.facts, "origin"),
        manifest=_manifest(path, card.sha256),
        licence=licence,
        data_licence=data_licence or _DATA_LICENCES.get(str(data.get("dataset"))),
    )
    return f"{shown}\n"


class _Plain(str):
    """Text of our own, which is Markdown already."""

    __slots__ = ()


def _shown(value: Any) -> Any:
    """A value in a card: names come from files, and must not become Markdown or HTML."""
    if isinstance(value, _Plain):
        return value
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", escape(printable(str(value)), quote=False))


def _manifest(path: Path, sha256: str) -> dict[str, Any]:
    """The manifest beside a weight file, where it speaks of this very file; else empty."""
    with suppress(ValueError, OSError):
        found = typed(read_json(path.parent / "manifest.json"), dict)
        if typed(found.get("best"), _Best).sha256 == sha256:
            return found
    return {}


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ResourceError('the Hub needs huggingface_hub; pip install "segmv3[hub]"') from None
    return huggingface_hub


@contextmanager
def _in_one_line(repo: str, revision: str) -> Iterator[Any]:
    """huggingface_hub, quiet, with its errors in one line.

    Raises:
        CheckpointError, ResourceError: in place of what it raised.
    """
    hub = _library()
    from huggingface_hub import constants, errors

    constants.HF_HUB_DISABLE_TELEMETRY = True  # it is read at each call
    hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    name, place = f"{PREFIX}{repo}", constants.ENDPOINT
    try:
        yield hub
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name} is no name of a net on the Hub ({checkpoint.one_line(error)})") from None
    except errors.GatedRepoError:
        raise CheckpointError(f"{name} is gated: ask for access at {place}/{repo}, then run: hf auth login") from None
    except errors.RepositoryNotFoundError:
        advice = "or it is private and needs a token: run hf auth login, or set HF_TOKEN"
        raise CheckpointError(f"{name}: {place} has no such net, {advice}") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision}") from None
    except errors.LocalEntryNotFoundError as error:
        cause = "the network is not to be used" if "local_files_only" in str(error) else f"{place} cannot be reached"
        raise CheckpointError(f"{name} is not in the cache, and {cause}") from None
    except errors.EntryNotFoundError:
        raise CheckpointError(f"{name} holds no {FILE}: it is no net of segmv3") from None
    except Exception as error:  # of httpx, whatever its name in this version
        raise CheckpointError(f"{name}: the Hub at {place} does not do it ({checkpoint.one_line(error)})") from None

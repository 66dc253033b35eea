"""The receipt beside an exported file: what it was made from, how it was proved, and its SHA-256."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmv3.convert.base import Target
from segmv3.convert.metadata import KEY, Metadata, from_text
from segmv3.convert.targets import target_of
from segmv3.errors import CheckpointError
from segmv3.files import sha256
from segmv3.records import read_json, typed

_FORMAT = 1
_LARGEST = 10_000_000


@dataclass(frozen=True)
class _File:
    name: str
    sha256: str


@dataclass(frozen=True)
class _Receipt:
    files: list[_File]


def receipt_path(path: Path) -> Path:
    """Where the receipt of an exported file lies: net.onnx.receipt.json beside net.onnx."""
    return path.with_name(f"{path.name}.receipt.json")


def files_of(path: Path, target: Target | None = None) -> tuple[Path, ...]:
    """All files of an export.

    Args:
        path: the file that is named.
        target: the one that wrote it; by default the one that its suffix tells.
    """
    writer = target or target_of(path)
    return writer.files(path) if writer else (path,)


def to_text(path: Path, facts: dict[str, Any], target: Target | None = None) -> str:
    """The receipt of an exported file that is written.

    Args:
        path: the file.
        facts: JSON types, kept as they are.
        target: as in `files_of`.
    """
    files = [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files_of(path, target)]
    return json.dumps({"format": _FORMAT, "files": files} | facts, indent=2) + "\n"


def metadata_of(path: Path) -> Metadata:
    """What the receipt says of a file whose format keeps no text.

    Raises:
        CheckpointError: there is no receipt, or it says nothing.
    """
    receipt = receipt_path(path)
    if not receipt.is_file():
        raise CheckpointError(f"{path} has no {receipt.name} beside it; the file cannot be opened without it")
    try:
        return from_text(typed(read_json(receipt, _LARGEST), dict[str, Any])[KEY], receipt)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{receipt} cannot be used ({error}); export again") from None


def verify_receipt(path: Path, *, trust: bool = False, target: Target | None = None) -> None:
    """Check that an exported file is the one that was proved.

    A receipt proves that a file is whole, not who wrote it. The file and its receipt may be renamed together.

    Args:
        path: the file.
        trust: the user knows who made the file; then it needs no receipt, and one that can run code is accepted.
        target: as in `files_of`.

    Raises:
        CheckpointError: the file differs from its receipt, or the receipt cannot be read. Without trust also when
            there is none, and for every file that can run code when it is opened.
    """
    receipt = receipt_path(path)
    remedy = "if you know who made it, add --trust (in Python trust=True)"
    writer = target or target_of(path)
    if writer and writer.runs_code and not trust:
        kind = path.suffix.lower()
        raise CheckpointError(f"{path} can run code when it is opened, as every {kind} can; {remedy}")
    if not receipt.is_file():
        if trust:
            return
        raise CheckpointError(
            f"{path} has no {receipt.name} beside it: it was moved without its receipt, or never proved; {remedy}"
        )
    try:
        files = typed(read_json(receipt, _LARGEST), _Receipt).files
        proved = {Path(each.name).suffix.lower(): each.sha256 for each in files}
    except ValueError as error:
        raise CheckpointError(f"{receipt} cannot be used: {error}; export again") from None
    for file in files_of(path, target):
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist; {path.name} needs it beside itself")
        if proved.get(file.suffix.lower()) != sha256(file, CheckpointError):
            raise CheckpointError(
                f"{file} is not the file that {receipt.name} was written for: it was changed, or the receipt is of "
                "another; export again"
            )


def digest_of(path: Path, target: Target | None = None) -> str:
    """One SHA-256 over all files of an export."""
    return hashlib.sha256("".join(sha256(file) for file in files_of(path, target)).encode()).hexdigest()

"""The receipt of a benchmark: every number and what it was measured on, as JSON."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segmv3.benchmark.timing import Others, core_count
from segmv3.files import make_folder, write_bytes
from segmv3.runtime.machine import machine


@dataclass(frozen=True)
class Conditions:
    """What else the machine did when the timing began."""

    command: str
    used_by_others: float | None
    """Cores that other programs used just before."""
    others: Others = field(default_factory=Others)


def receipt(kind: str, conditions: Conditions, settings: Mapping[str, Any], **results: Any) -> dict[str, Any]:
    """Everything that is known about a benchmark that just ended, as JSON types.

    Args:
        kind: the subcommand.
        settings: what was asked for.
        results: what was found.
    """
    meanwhile = conditions.others.cores()
    return {
        "benchmark": kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": conditions.command,
        "machine": machine(),
        "cores_used_by_others": {
            "before": _rounded(conditions.used_by_others),
            "meanwhile": _rounded(meanwhile),
            "of": core_count(),
        },
        "settings": dict(settings),
        **results,
    }


def write_receipt(path: Path, content: Mapping[str, Any]) -> None:
    """Write a receipt; its folder is made.

    Raises: OutputError or ResourceError naming the path.
    """
    make_folder(path.parent)
    entries = []  # a line for every fact and every row
    for key, value in content.items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
        entries.append(f"{json.dumps(key)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
    write_bytes(path, ("{\n " + ",\n ".join(entries) + "\n}\n").encode())


def _rounded(cores: float | None) -> float | None:
    return None if cores is None else round(cores, 2)

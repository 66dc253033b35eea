"""`segmv3 models`."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmv3.commands.options import parse
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from segmv3.models.family import Counted


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the named nets."""

    all: bool = False
    """List every net of the references, with the accuracy that its authors published."""
    csv: bool = False
    """With --all: write the list as CSV."""


def run(arguments: list[str]) -> None:
    options = parse(Models, "segmv3 models", arguments)
    if options.csv and not options.all:
        raise ConfigError("--csv is for the whole list; use --all --csv")
    from segmv3.models.count import describe_nets
    from segmv3.models.family import count_family
    from segmv3.report.tables import family_tables, models_table
    from segmv3.screen import Screen

    if options.csv:
        _write_csv(list(count_family()))
    elif options.all:
        for table in family_tables(list(count_family())):
            Screen().print(table)
    else:
        Screen().print(models_table(describe_nets()))


def _write_csv(nets: "Sequence[Counted]") -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("net", "parameters", "mmacs_224", "gmacs_1024x2048", "published"))
    for net in nets:
        cost = (net.parameters, f"{net.mmacs:.3f}", f"{net.gmacs:.3f}")
        rows.writerow((net.name, *cost, net.published))

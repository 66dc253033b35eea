"""`segmv3 models`."""

from dataclasses import dataclass

from segmv3.commands.options import parse


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the named nets."""

    all: bool = False
    """List every net of the references, with the accuracy that its authors published."""


def run(arguments: list[str]) -> None:
    options = parse(Models, "segmv3 models", arguments)
    from segmv3.models.count import describe_nets
    from segmv3.models.family import count_family
    from segmv3.report.tables import family_table, models_table
    from segmv3.screen import Screen

    Screen().print(family_table(count_family()) if options.all else models_table(describe_nets()))

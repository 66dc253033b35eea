"""`segmv3 weights`: other projects' weight files, and the published ones."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import parse, refuse_existing, refuse_itself, run_one_of
from segmv3.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the published weight files that can be used by name."""

    json: bool = False
    """Print everything that is known of them as JSON."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a weight file of mmsegmentation, torchvision, timm, d-li14, fastseg, PaddleClas or PaddleSeg into ours."""

    source: tyro.conf.Positional[str]
    """File, or a name of `segmv3 weights list`."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; by default the source's name with .safetensors, in the current folder."""
    into: str | None = None
    """Start this net from the weights instead, such as lraspp_large_d8: what fits is taken, the rest is listed."""
    num_classes: int | None = None
    """Classes of that net; by default those of the weights, or 19 where they name none of a segmentation."""
    new_head: bool = False
    """Start the layers that tell classes apart afresh."""
    variant: str | None = None
    """Which net of its project the file holds, where names and shapes leave a choice."""
    offline: bool = False
    """Take published files from the cache only."""
    overwrite: bool = False
    """Replace the output file."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Write the mean of weight files: a uniform soup of runs that began with the same weights."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Two weight files or more, of the same net and classes."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write."""
    overwrite: bool = False
    """Replace the output file."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Publish weights on the Hugging Face Hub with a card; hub:USER/NAME then names them everywhere."""

    weights: tyro.conf.Positional[Path]
    """A weight file of segmv3, or the folder of a run."""
    name: tyro.conf.Positional[str]
    """USER/NAME; it is made where it does not exist."""
    licence: str | None = None
    """Licence of the weights by its short name, such as apache-2.0; the card says what is not stated."""
    data_licence: str | None = None
    """Licence of the data that they were trained on, in words."""
    private: bool = False
    """Make a new one private."""
    revision: str | None = None
    """Branch to write to."""
    dry_run: bool = False
    """Print the card, and contact nobody."""


def run(arguments: list[str]) -> None:
    """Do `segmv3 weights list`, `import`, `average` or `push`."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "list": lambda rest: _list(parse(List, "segmv3 weights list", rest)),
        "import": lambda rest: _import(parse(Import, "segmv3 weights import", rest)),
        "average": lambda rest: _average(parse(Average, "segmv3 weights average", rest)),
        "push": lambda rest: _push(parse(Push, "segmv3 weights push", rest)),
    }
    usage = "list | import FILE_OR_NAME [-o FILE] [--into NET] | average FILE FILE ... -o FILE | push FILE USER/NAME"
    run_one_of("weights", commands, usage, arguments)


_GROUPS = {
    "Cityscapes": "street scenes, trained on Cityscapes, whose licence allows non-commercial use only",
    "COCO with VOC's labels": "other scenes, trained on COCO with VOC's labels",
    "COCO's boxes": "detectors, trained on COCO, for segmv3 detect",
    "ImageNet": "classifiers, trained on ImageNet: starts for training",
}


def _list(options: List) -> None:
    """Print the table of published files."""
    from segmv3.screen import print_line
    from segmv3.weights.names import published

    entries = published().values()
    if options.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for group, title in _GROUPS.items():
        print_line(f"{title}:")
        for entry in entries:  # plain lines: a table would cut the names on a narrow terminal
            if entry.trained_on.startswith(group):
                print_line(f"  {entry.name:<43}{entry.licence.partition(' (')[0]:<13}{entry.accuracy}")
    print_line("segmv3 weights list --json has addresses, digests, sources and whole licences.")


def _push(options: Push) -> None:
    """Raises: CheckpointError; nothing is sent then."""
    from segmv3.screen import print_line
    from segmv3.weights import hub

    file, licence, data_licence = hub.weight_file(options.weights), options.licence, options.data_licence
    if options.dry_run:
        print(hub.model_card(file, hub.repository(options.name), licence=licence, data_licence=data_licence))
        return
    address = hub.push(
        file,
        options.name,
        private=options.private or None,
        revision=options.revision,
        licence=licence,
        data_licence=data_licence,
    )
    print_line(f"published {address}")


def _average(options: Average) -> None:
    """Raises: CheckpointError, OutputError; nothing is written then."""
    refuse_existing(options.output, options.overwrite)
    for source in options.sources:
        refuse_itself(options.output, source, "one of the sources")
    from segmv3.screen import print_line
    from segmv3.weights.averaging import average

    average(options.sources, options.output)
    print_line(f"wrote {options.output}: the mean of {len(options.sources)} weight files; nothing has scored it yet")


def _import(options: Import) -> None:
    """Read, translate and write one weight file; say what was loaded and what was not.

    Raises: CheckpointError, ModelError, OutputError; nothing is written then.
    """
    source = Path(options.source)
    output = options.output or Path(f"{source.stem if source.is_file() else source.name}.safetensors")
    refuse_existing(output, options.overwrite)
    refuse_itself(output, source, "the source itself")
    if options.into is None and (options.num_classes is not None or options.new_head):
        raise CheckpointError("--num-classes and --new-head belong to --into NET")

    from segmv3 import checkpoint
    from segmv3.config import Classifier
    from segmv3.labels import Classes
    from segmv3.models.count import parameters
    from segmv3.models.zoo import create_model, net, net_name
    from segmv3.screen import print_line
    from segmv3.weights.opening import open_weights
    from segmv3.weights.transfer import differing_settings, modules, transfer

    target = net(options.into) if options.into else None  # a wrong name must not cost a download
    imported = open_weights(options.source, variant=options.variant, offline=options.offline)
    if target is None:
        model, facts = imported.model(), imported.facts
        classes: Classes | tuple[str, ...] | None = (
            imported.names if isinstance(imported.net, Classifier) else imported.classes
        )
        loaded, new, unused = len(imported.tensors) - len(imported.new), len(imported.new), len(imported.unused)
        print_line(f"{imported.title}: {loaded} tensors loaded, {new} new{' (zeros)' if new else ''}, {unused} unused")
    else:
        labelled = () if isinstance(imported.net, Classifier) else imported.names
        number = options.num_classes if options.num_classes is not None else len(labelled) or 19
        model = create_model(target, number)
        classes = imported.classes if len(labelled) == number else None
        fit = transfer(imported, model, new_head=options.new_head)
        print_line(f"{options.into}: {fit}")
        facts = {"untrained": modules(fit.new)} if fit.new else {}
        if differing := differing_settings(imported.net, target):
            print_line(f"trained with {', '.join(differing)}; {options.into} differs there")
    for note in imported.notes:
        print_line(note)
    checkpoint.save(model, output, classes=classes, origin=imported.origin, **facts)
    kind = "classifier" if isinstance(model.config, Classifier) else net_name(model.config)
    print_line(f"wrote {output}: {kind}, {model.num_classes:,} classes, {parameters(model):,} parameters")
    if licence := imported.origin.get("licence"):
        print_line(f"licence: {licence}")

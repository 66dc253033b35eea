"""OpenVINO: a net as an IR model, which is two files by its nature, FILE.xml (the graph) and FILE.bin (the weights)."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import torch

from segmv3.convert.extras import import_openvino, scratch_folder
from segmv3.convert.graph import INPUT, Graph, example
from segmv3.convert.metadata import KEY, Metadata, from_text
from segmv3.errors import CheckpointError
from segmv3.files import write_bytes
from segmv3.models.segmenter import Segmenter

if TYPE_CHECKING:
    import openvino

_LARGEST_XML = 100_000_000


def to_openvino(model: Segmenter, metadata: Metadata) -> "openvino.Model":
    """Convert a net.

    Args: metadata: says which output and size; its text is kept in the model's rt_info.
    Raises: ModelError when openvino is not installed.
    """
    openvino = import_openvino()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of shapes that are the same for every image
        # traced here, once and on a small image: convert_model would trace three times
        traced = torch.jit.trace(Graph(model, metadata.output), example(metadata.size), check_trace=False)
        height, width = metadata.size or (-1, -1)
        shape = openvino.PartialShape([1 if metadata.size else -1, height, width, 3])
        converted = openvino.convert_model(traced, input=shape)
    converted.inputs[0].get_tensor().set_names({INPUT})
    converted.outputs[0].get_tensor().set_names({metadata.output.replace("-", "_")})
    return with_metadata(converted, metadata)


def with_metadata(model: "openvino.Model", metadata: Metadata) -> "openvino.Model":
    """Keep the metadata in a model; whatever rewrites a model may lose it."""
    model.set_rt_info(metadata.to_text(), [KEY])
    return model


def weights_path(path: Path) -> Path:
    """Where the weights of FILE.xml lie."""
    return path.with_suffix(".bin")


def to_bytes(model: "openvino.Model") -> tuple[bytes, bytes]:
    """The two files of an IR model: xml, bin."""
    openvino = import_openvino()

    with scratch_folder() as folder:
        path = folder / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), weights_path(path).read_bytes()


def write(model: "openvino.Model", path: Path) -> None:
    """Write FILE.xml and FILE.bin beside it, the weights first: without its .xml a .bin is nothing.

    Raises: OutputError or ResourceError naming the file that cannot be written.
    """
    graph, weights = to_bytes(model)
    write_bytes(weights_path(path), weights)
    write_bytes(path, graph)


def metadata_of(path: Path) -> Metadata:
    """What an IR model says of itself; OpenVINO is not needed for it.

    Raises: CheckpointError when the file or its weights are missing, or it is no export of segmv3.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if not weights_path(path).is_file():
        raise CheckpointError(f"{path} has no {weights_path(path).name} beside it; an OpenVINO model is both files")
    data = path.read_bytes() if path.stat().st_size < _LARGEST_XML else b""
    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # no IR has any, and they can make a small file huge
            raise ElementTree.ParseError("it declares entities")
        element = ElementTree.fromstring(data).find(f"rt_info/{KEY}")
    except ElementTree.ParseError as error:
        raise CheckpointError(f"{path} is no OpenVINO model ({error})") from None
    if element is None:
        raise CheckpointError(f"{path} was not exported by segmv3; use segmv3 export")
    return from_text(element.get("value", ""), path)

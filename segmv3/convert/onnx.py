"""ONNX: a net as one file, opset 18, with nothing outside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from segmv3.convert.base import Arithmetic, Run, Say, Target, cannot, sums_fit
from segmv3.convert.extras import scratch_folder, silence
from segmv3.convert.graph import INPUT, Graph, Net, example
from segmv3.convert.metadata import KEY, Metadata, from_text
from segmv3.convert.openvino import open_openvino
from segmv3.errors import CheckpointError, ModelError
from segmv3.files import write_bytes
from segmv3.images import UInt8Array

if TYPE_CHECKING:
    import onnx

OPSET = 18
_LARGEST = 2_000_000_000  # what protobuf can hold


@dataclass(frozen=True)
class Onnx(Target):
    """One file for ONNX Runtime, which OpenVINO opens too."""

    name: ClassVar[str] = "onnx"
    classifiers: ClassVar[bool] = True
    suffix: ClassVar[str] = ".onnx"
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    extra: ClassVar[str] = "export"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def write(
        self, model: Net, metadata: Metadata, path: Path, images: Sequence[UInt8Array] = (), say: Say = print
    ) -> None:
        write_bytes(path, to_onnx(model, metadata))

    def read(self, path: Path) -> Metadata:
        """As `Target.read`. No other file is opened.

        Raises:
            CheckpointError: it is damaged, no export of segmv3, or wants weights from another folder.
            ModelError: onnx is not installed.
        """
        try:
            import onnx
            from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        except ImportError:
            raise ModelError('reading an onnx file needs onnx and onnxruntime; pip install "segmv3[export]"') from None
        try:
            if not 0 < path.stat().st_size <= _LARGEST:
                raise DecodeError("it is empty" if path.stat().st_size == 0 else "it is too large")
            model = onnx.load_from_string(path.read_bytes())
        except (DecodeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or no ONNX file ({error})") from None
        folder = path.resolve().parent
        for location in _locations(model):
            if not (folder / location).resolve().is_relative_to(folder):
                raise CheckpointError(
                    f"{path} wants weights from outside its folder ({location!r:.80}); it is not opened"
                )
        return from_text(next((entry.value for entry in model.metadata_props if entry.key == KEY), None), path)

    def open(self, path: Path, metadata: Metadata, runtime: str, precision: Arithmetic, threads: int) -> Run:
        if runtime == "openvino":
            return open_openvino(path, precision, threads)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings are about its own optimiser
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class
            raise cannot("open", path, "ONNX Runtime", error) from None

        def run(images: UInt8Array) -> Any:
            try:
                return session.run(None, {INPUT: images})[0]
            except Exception as error:  # as above; a file that is not what it says of itself
                raise cannot("run", path, "ONNX Runtime", error) from None

        return run

    def is_safe(self, path: Path) -> bool:
        import onnx

        stored = onnx.load(path).graph.initializer
        return sums_fit(onnx.numpy_helper.to_array(one) for one in stored if one.data_type == onnx.TensorProto.INT8)


def to_onnx(model: Net, metadata: Metadata) -> bytes:
    """Convert a net.

    Args:
        model: the net.
        metadata: says which output and size; its text is kept in the file's metadata_props.
    """
    import onnx

    output = metadata.output.replace("-", "_")
    axes = {} if metadata.size else {INPUT: {0: "batch", 1: "height", 2: "width"}, output: {0: "batch"}}
    with scratch_folder() as folder, silence(), torch.inference_mode():
        # dynamo=True makes the same layers, takes ten times as long, and its sizes are arithmetic on the image's
        torch.onnx.export(
            Graph(model, metadata.output),
            (example(metadata.size),),
            path := folder / "net.onnx",
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes=axes,
        )
        converted = onnx.load(path)
    _drop_identities(converted.graph)
    if not metadata.size:
        _name_output_axes(converted.graph, metadata)
    return with_metadata(converted.SerializeToString(), metadata)


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Put the metadata into a model. Do it last: quantisers may lose it."""
    import onnx

    model = onnx.load_from_string(data)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=KEY, value=metadata.to_text())])
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _drop_identities(graph: "onnx.GraphProto") -> None:
    """Remove Identity nodes. Torch stores equal weights once and copies them by such nodes."""
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    kept = [node for node in graph.node if node.op_type != "Identity"]
    for node in kept:
        for place, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[place] = name
    del graph.node[:]
    graph.node.extend(kept)


def _name_output_axes(graph: "onnx.GraphProto", metadata: Metadata) -> None:
    """Say of each axis of the result what it is; torch derives names from the layers."""
    names: dict[str, tuple[str | int, ...]] = {
        "low-logits": ("batch", len(metadata.names), "low_height", "low_width"),
        "logits": ("batch", len(metadata.names), "height", "width"),
        "labels": ("batch", "height", "width"),
        "class-logits": ("batch", len(metadata.names)),
    }
    for axis, name in zip(graph.output[0].type.tensor_type.shape.dim, names[metadata.output], strict=True):
        if isinstance(name, int):
            axis.dim_value = name
        else:
            axis.dim_param = name


def _locations(message: Any) -> Iterator[str]:
    """The files that the tensors of a protobuf message, wherever they are in it, are to be read from."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield from (entry.value for entry in message.external_data if entry.key == "location")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from _locations(inner)

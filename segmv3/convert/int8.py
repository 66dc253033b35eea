"""int8: nets whose convolutions multiply bytes. Real images tell the ranges of the feature maps.

Weights get a scale for each channel, feature maps are uint8. What is computed from a pooled map (squeeze-and-excite
and the head's gate) stays in float: one value weighs a whole channel there, and it costs next to nothing.

Weights have 7 bits, but for depthwise ones. Without VNNI an x86 processor adds the products of two channels, each of a
byte (0 to 255) and a weight, in 16 signed bits and cuts off what is larger. With weights of -64 to 64 nothing ever is,
so that one file is right on all processors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import cv2

from segmv3.convert import onnx as onnx_file
from segmv3.convert import openvino as openvino_file
from segmv3.convert.base import Say, Target
from segmv3.convert.extras import import_nncf, scratch_folder, silence
from segmv3.convert.graph import INPUT, Net
from segmv3.convert.metadata import KEY, FilePrecision, Metadata, from_text
from segmv3.errors import DataError, ModelError
from segmv3.files import write_bytes
from segmv3.images import UInt8Array

if TYPE_CHECKING:
    import openvino

FEWEST_IMAGES = 8
"""Fewer images do not show the true ranges of the feature maps."""

ENOUGH_IMAGES = 100
"""More images changed no measured number."""

_RIGHT_ON = ("AVX2", "AVX-512", "AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "NEON")
"""A safe file is right on processors that cut off sums at 16 bits, and on those that do not."""

Progress = Callable[[int, int], None]

_POOLS = frozenset({"ReduceMean", "AvgPool", "AveragePool"})
_JOINS = frozenset({"Multiply", "Mul", "Concat"})
"""Where what was pooled comes back to the whole map."""


@dataclass(frozen=True)
class _Int8(Target):
    """What both targets share."""

    precision: ClassVar[FilePrecision] = "int8"
    calibrated: ClassVar[bool] = True
    processors: ClassVar[Mapping[str, Any]] = MappingProxyType({"right_on": _RIGHT_ON, "because": "weights of 7 bits"})


@dataclass(frozen=True)
class OnnxInt8(_Int8, onnx_file.Onnx):
    """An ONNX file of bytes, quantised by ONNX Runtime."""

    name: ClassVar[str] = "onnx-int8"
    baseline: ClassVar[Target | None] = onnx_file.Onnx()

    def write(
        self, model: Net, metadata: Metadata, path: Path, images: Sequence[UInt8Array] = (), say: Say = print
    ) -> None:
        say("convert in fp32")
        data = onnx_file.to_onnx(model, replace(metadata, precision="fp32"))
        write_bytes(path, quantize_onnx(data, images, progress=_told(say)))


@dataclass(frozen=True)
class OpenVinoInt8(_Int8, openvino_file.OpenVino):
    """An OpenVINO model of bytes, quantised by NNCF."""

    name: ClassVar[str] = "openvino-int8"
    needs: ClassVar[tuple[str, ...]] = ("openvino", "nncf")
    baseline: ClassVar[Target | None] = openvino_file.OpenVino()

    def write(
        self, model: Net, metadata: Metadata, path: Path, images: Sequence[UInt8Array] = (), say: Say = print
    ) -> None:
        say("convert in fp32")
        converted = openvino_file.to_openvino(model, replace(metadata, precision="fp32"))
        openvino_file.write(quantize_openvino(converted, images, progress=_told(say)), path)


def _told(say: Say) -> Progress:
    return lambda done, total: say(f"calibrate on image {done} of {total}")


def quantize_openvino(
    model: "openvino.Model", images: Sequence[UInt8Array], *, progress: Progress | None = None
) -> "openvino.Model":
    """Quantise by NNCF, with full bias correction.

    Args:
        model: from `to_openvino`; it is left as it is.
        images: uint8 H x W x 3, RGB, of any sizes; ENOUGH_IMAGES of the training set. A net of fixed size gets them
            resized.
        progress: called with (images read, images to read), once for each time that NNCF goes through them.

    Returns:
        A model with the same input, output and metadata, its precision "int8".

    Raises:
        DataError: there are too few images.
        ModelError: an image has another shape or dtype, or nncf is missing.
    """
    metadata = from_text(model.get_rt_info([KEY]).astype(str), "the model")
    batches = _Batches(images, metadata.size, progress)
    nncf = import_nncf()
    kinds: dict[str, str] = {}
    users: dict[str, list[str]] = {}
    for layer in model.get_ordered_ops():
        targets = [target for output in layer.outputs() for target in output.get_target_inputs()]
        kinds[layer.get_friendly_name()] = layer.get_type_name()
        users[layer.get_friendly_name()] = [target.get_node().get_friendly_name() for target in targets]
    with silence():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=_pooled_layers(kinds, users)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    return openvino_file.with_metadata(quantized, replace(metadata, precision="int8"))


def quantize_onnx(data: bytes, images: Sequence[UInt8Array], *, progress: Progress | None = None) -> bytes:
    """Quantise by ONNX Runtime: static, with QuantizeLinear and DequantizeLinear around the layers.

    Args:
        data: from `to_onnx`.
        images: as for `quantize_openvino`.
        progress: as for `quantize_openvino`.

    Returns:
        A model with the same input, output and metadata, its precision "int8".

    Raises:
        DataError: there are too few images.
        ModelError: an image has another shape or dtype, or onnxruntime is missing.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    except ImportError:
        raise ModelError('the onnx-int8 export needs onnx and onnxruntime; pip install "segmv3[export]"') from None
    model = onnx.load_from_string(data)
    metadata = from_text(next(entry.value for entry in model.metadata_props if entry.key == KEY), "the model")
    batches = iter(_Batches(images, metadata.size, progress))

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, UInt8Array] | None:
            return next(({INPUT: batch} for batch in batches), None)

    nodes = model.graph.node
    kinds = {node.name: node.op_type for node in nodes}
    users = {node.name: [user.name for user in nodes if set(user.input) & set(node.output)] for node in nodes}
    with scratch_folder() as folder, silence():
        path = folder / "quantized.onnx"
        quantize_static(
            model,
            path,
            Reader(),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*_pooled_layers(kinds, users), *_first_and_last(kinds, users)],
            # the mean of the images' ranges, as NNCF takes it: one image with a glare would else stretch them all
            extra_options={"CalibMovingAverage": True},
        )
        return onnx_file.with_metadata(path.read_bytes(), replace(metadata, precision="int8"))


@dataclass(frozen=True)
class _Batches:
    """One image after another as the net takes it. Quantisers go through them several times."""

    images: Sequence[UInt8Array]
    size: tuple[int, int] | None
    progress: Progress | None

    def __post_init__(self) -> None:
        if len(self.images) < FEWEST_IMAGES:
            raise DataError(
                f"int8 needs {FEWEST_IMAGES} images or more, found {len(self.images)}; give it about {ENOUGH_IMAGES} "
                "of those the net was trained on"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[UInt8Array]:
        for done, image in enumerate(self.images, 1):
            if image.dtype != "uint8" or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ModelError(f"an image must be uint8 H x W x 3 (RGB), found {image.dtype} {image.shape}")
            if self.size and image.shape[:2] != self.size:
                image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
            if self.progress:
                self.progress(done, len(self.images))
            yield image[None]


def _pooled_layers(kinds: Mapping[str, str], users: Mapping[str, Sequence[str]]) -> list[str]:
    """The layers that work on pooled maps, up to where these come back to the whole map.

    Args:
        kinds: the kind of each layer, by its name.
        users: the layers that take its result, by its name.
    """
    found: dict[str, None] = {}  # a set that keeps its order
    waiting = [user for name, kind in kinds.items() if kind in _POOLS for user in users[name]]
    while waiting:
        name = waiting.pop()
        if kinds[name] not in _JOINS and name not in found:
            found[name] = None
            waiting += users[name]
    return list(found)


def _first_and_last(kinds: Mapping[str, str], users: Mapping[str, Sequence[str]]) -> list[str]:
    """The first convolution of an ONNX graph, the last ones, and what follows them.

    With three channels ONNX Runtime is several times slower in bytes than in float, and at the end it would round the
    logits themselves to bytes.
    """
    before_another: set[str] = set()
    for name in reversed(list(kinds)):  # in the order of the graph, users come after what they use
        if any(user in before_another or kinds[user] == "Conv" for user in users[name]):
            before_another.add(name)
    first = next(name for name, kind in kinds.items() if kind == "Conv")
    return [first, *(name for name in kinds if name not in before_another)]

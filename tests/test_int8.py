"""int8: which layers are quantised, how far the result is from float, and what is refused."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import segmv3
from segmv3.config import LRASPP, LRASPPDecoder, MobileNetV3, Model, to_dict
from segmv3.convert import openvino as openvino_file
from segmv3.convert.extras import openvino_core
from segmv3.convert.int8 import (
    FEWEST_IMAGES,
    OnnxInt8,
    _first_and_last,
    _pooled_layers,
    quantize_onnx,
    quantize_openvino,
)
from segmv3.convert.metadata import KEY, Metadata, from_text
from segmv3.convert.onnx import to_onnx
from segmv3.convert.openvino import to_openvino
from segmv3.convert.receipt import receipt_path, to_text
from segmv3.convert.targets import target_of
from segmv3.errors import DataError, ModelError, Segmv3Warning
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_model
from segmv3.runtime import loading

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
onnxruntime = pytest.importorskip("onnxruntime")
nncf = pytest.importorskip("nncf")

SIZES = ((48, 64), (64, 64), (65, 97), (40, 96))
LARGEST_ERROR = 0.15
"""Of the root mean square of the logits; fresh weights give 0.03 to 0.08."""

ANY_SIZE = Model(backbone=MobileNetV3(size="small", width=0.35, tail="rf2", output_stride=16), head=LRASPP(channels=32))
FIXED_SIZE = Model(
    backbone=MobileNetV3(size="small", width=0.35, output_stride=8, padding="same"),
    head=LRASPPDecoder(channels=32, pool_window=(4, 4), pool_stride=(2, 2)),
)
"""Window pooling, a gate larger than 1x1, convolutions cut in two: what an export makes its own arrangements for."""
NETS = {"any size": (ANY_SIZE, None), "fixed size": (FIXED_SIZE, (64, 96))}


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Coarse coloured patches, so that neighbouring pixels agree as in a photograph."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(patches, size[::-1], interpolation=cv2.INTER_CUBIC)


PICTURES = [picture(seed, SIZES[seed % len(SIZES)]) for seed in range(FEWEST_IMAGES)]


@cache
def net_and_metadata(name: str) -> tuple[Segmenter, Metadata]:
    settings, size = NETS[name]
    torch.manual_seed(0)
    model = create_model(settings, 5).eval()
    names = tuple("abcde")
    colors = tuple((i, i, i) for i in range(5))
    about = Metadata(output="low-logits", size=size, names=names, colors=colors, model=to_dict(settings), source="a")
    return model, about


@cache
def as_openvino(name: str) -> Any:
    return to_openvino(*net_and_metadata(name))


@cache
def as_onnx(name: str) -> bytes:
    return to_onnx(*net_and_metadata(name))


def error(reference: np.ndarray, found: np.ndarray) -> float:
    assert reference.shape == found.shape
    return float(np.sqrt(((found - reference) ** 2).mean() / (reference**2).mean()))


def pictures_for(name: str) -> list[np.ndarray]:
    size = NETS[name][1]
    return [picture(100, size)] if size else [picture(100 + i, size) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=NETS)
def ir(request: pytest.FixtureRequest) -> tuple[str, Any, Any, list[tuple[int, int]]]:
    """Name, model, quantised model, what progress was told."""
    told: list[tuple[int, int]] = []
    model = as_openvino(request.param)
    return request.param, model, quantize_openvino(model, PICTURES, progress=lambda *n: told.append(n)), told


@pytest.fixture(scope="module", params=NETS)
def onnx_files(request: pytest.FixtureRequest) -> tuple[str, bytes, bytes, list[tuple[int, int]]]:
    """Name, file, quantised file, what progress was told."""
    told: list[tuple[int, int]] = []
    data = as_onnx(request.param)
    return request.param, data, quantize_onnx(data, PICTURES, progress=lambda *n: told.append(n)), told


def convolutions(model: Any) -> list[tuple[str, bool]]:
    """Name of each convolution of an IR model, and whether its weights are quantised."""

    def quantised(node: Any) -> bool:
        kinds = set()
        while node.get_type_name() in ("FakeQuantize", "Reshape", "Multiply", "Subtract", "Convert"):
            kinds.add(node.get_type_name())
            node = node.input_value(0).get_node()
        return "FakeQuantize" in kinds or str(node.get_element_type().to_string()).endswith("8")

    return [
        (op.get_friendly_name(), quantised(op.input_value(1).get_node()))
        for op in model.get_ordered_ops()
        if op.get_type_name().endswith("Convolution")
    ]


def test_an_openvino_net_is_quantised_but_for_what_is_pooled(ir: tuple) -> None:
    _, model, quantized, _ = ir
    found = convolutions(quantized)
    in_float = {name for name, quantised in found if not quantised}
    assert in_float == {name for name, _ in found if ".squeeze." in name or ".gate/" in name}
    assert len(found) > 2 * len(in_float) > 0
    assert not any(quantised for _, quantised in convolutions(model)), "the model given was changed"


def test_an_openvino_net_stays_close_and_keeps_its_interface(ir: tuple) -> None:
    name, model, quantized, told = ir
    about = net_and_metadata(name)[1]
    before, after = (
        openvino_core().compile_model(m, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for m in (model, quantized)
    )
    for image in pictures_for(name):
        assert 0 < error(before(image[None])[0], after(image[None])[0]) < LARGEST_ERROR
    assert from_text(quantized.get_rt_info([KEY]).astype(str), "x") == replace(about, precision="int8")
    assert from_text(model.get_rt_info([KEY]).astype(str), "x") == about
    assert quantized.inputs[0].get_any_name() == "image"
    assert quantized.outputs[0].get_any_name() == "low_logits"
    assert quantized.inputs[0].get_partial_shape() == model.inputs[0].get_partial_shape()
    assert quantized.inputs[0].get_element_type() == openvino.Type.u8
    assert told[-1] == (len(PICTURES), len(PICTURES))


def test_an_onnx_net_is_quantised_but_for_what_is_pooled_and_both_ends(onnx_files: tuple) -> None:
    graph = onnx.load_from_string(onnx_files[2]).graph
    maker = {output: node for node in graph.node for output in node.output}
    found = {
        node.name: all(getattr(maker.get(name), "op_type", "") == "DequantizeLinear" for name in node.input[:2])
        for node in graph.node
        if node.op_type == "Conv"
    }
    in_float = {name for name, quantised in found.items() if not quantised}
    assert in_float == {
        name for name in found if any(word in name for word in ("/stem/", "/squeeze", "/gate/", "classifier"))
    }
    assert len(found) > 2 * len(in_float) > 0
    per_channel = [x for x in graph.initializer if x.name.endswith("_scale") and np.prod(x.dims) > 1]
    assert len(per_channel) >= len(found) - len(in_float)
    activations = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    zero_points = {x.name: x.data_type for x in graph.initializer}
    assert {zero_points[node.input[2]] for node in activations} == {onnx.TensorProto.UINT8}


def test_an_onnx_net_stays_close_and_keeps_its_interface(onnx_files: tuple) -> None:
    name, data, quantized, told = onnx_files
    about = net_and_metadata(name)[1]
    before, after = (onnxruntime.InferenceSession(d, providers=["CPUExecutionProvider"]) for d in (data, quantized))
    for image in pictures_for(name):
        feed = {"image": image[None]}
        assert 0 < error(before.run(["low_logits"], feed)[0], after.run(["low_logits"], feed)[0]) < LARGEST_ERROR
    texts = {entry.key: entry.value for entry in onnx.load_from_string(quantized).metadata_props}
    assert from_text(texts[KEY], "x") == replace(about, precision="int8")
    assert (after.get_inputs()[0].type, after.get_inputs()[0].shape) == ("tensor(uint8)", before.get_inputs()[0].shape)
    assert told[-1] == (len(PICTURES), len(PICTURES))


def full_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the quantisers use all 8 bits for weights, as they do by themselves."""
    from onnxruntime.quantization import quantize_static

    fix = nncf.AdvancedQuantizationParameters
    monkeypatch.setattr(nncf, "AdvancedQuantizationParameters", lambda **_: fix(overflow_fix=nncf.OverflowFix.DISABLE))
    static = lambda *args, **kwargs: quantize_static(*args, **kwargs | {"reduce_range": False})  # noqa: E731
    monkeypatch.setattr("onnxruntime.quantization.quantize_static", static)


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_a_file_that_needs_vnni_is_named_where_there_is_none(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As segmv3 once wrote them; what they and their receipts say of themselves names no processor."""
    path = tmp_path / f"net{suffix}"

    def write() -> None:
        if suffix == ".xml":
            openvino_file.write(quantize_openvino(as_openvino("any size"), PICTURES), path)
        else:
            path.write_bytes(quantize_onnx(as_onnx("any size"), PICTURES))
        receipt_path(path).write_text(to_text(path, {}))

    with monkeypatch.context() as patch:
        full_range(patch)
        write()
    assert not target_of(path).is_safe(path)
    monkeypatch.setattr(loading, "saturates", lambda: True)
    words = "was written for processors with VNNI and this one has none: sums in it are cut off"
    with pytest.warns(Segmv3Warning, match=rf"{path.name} {words}, and its labels can be much worse; export it again"):
        predict = segmv3.load(path, threads=1)
    assert predict(PICTURES[0]).shape == PICTURES[0].shape[:2]
    monkeypatch.setattr(loading, "saturates", lambda: False)
    segmv3.load(path, threads=1)  # a warning would be an error
    monkeypatch.setattr(loading, "saturates", lambda: True)
    write()
    assert target_of(path).is_safe(path)
    segmv3.load(path, threads=1)


@pytest.mark.parametrize(("weight", "safe"), [(64, True), (-64, True), (65, False), (-65, False)])
def test_two_products_fit_into_16_bits_or_the_file_is_not_safe(weight: int, safe: bool, tmp_path: Path) -> None:
    assert (abs(2 * 255 * weight) < 2**15) is safe
    values = np.zeros((3, 2, 1, 1), np.int8)
    values[1, 1] = weight
    depthwise = np.full((3, 1, 3, 3), 127, np.int8)  # summed over one channel: nothing is added in 16 bits
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in (("w", values), ("d", depthwise))]
    graph = onnx.helper.make_graph([], "g", [], [], stored)
    (tmp_path / "net.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert OnnxInt8().is_safe(tmp_path / "net.onnx") is safe


@pytest.mark.parametrize("count", [0, FEWEST_IMAGES - 1])
def test_too_few_images_are_refused(count: int) -> None:
    message = rf"needs {FEWEST_IMAGES} images or more, found {count}"
    with pytest.raises(DataError, match=message):
        quantize_openvino(as_openvino("any size"), PICTURES[:count])
    with pytest.raises(DataError, match=message):
        quantize_onnx(as_onnx("any size"), PICTURES[:count])


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_an_image_of_another_kind_is_refused(wrong: np.ndarray) -> None:
    images = [PICTURES[0], wrong, *PICTURES]
    with pytest.raises(ModelError, match="an image must be uint8 H x W x 3"):
        quantize_openvino(as_openvino("any size"), images)
    with pytest.raises(ModelError, match="an image must be uint8 H x W x 3"):
        quantize_onnx(as_onnx("any size"), images)


def test_what_follows_a_pooled_map_is_found_up_to_the_join() -> None:
    kinds = {
        "conv": "Conv",
        "pool": "ReduceMean",
        "a": "Conv",
        "b": "Relu",
        "join": "Mul",
        "logits": "Conv",
        "add": "Add",
    }
    users = {"conv": ["pool", "join"], "pool": ["a"], "a": ["b"], "b": ["join"], "join": ["logits"], "logits": ["add"]}
    users["add"] = []
    assert set(_pooled_layers(kinds, users)) == {"a", "b"}
    assert set(_first_and_last(kinds, users)) == {"conv", "logits", "add"}


@pytest.mark.slow
def test_packages_are_imported_without_their_reports_and_without_a_word() -> None:
    code = (
        "import sys; from segmv3.convert.extras import import_nncf, import_openvino\n"
        "import_openvino().convert_model, import_nncf()\n"
        "assert {'nncf', 'openvino'} <= set(sys.modules) and 'openvino_telemetry' not in sys.modules\n"
        "from nncf.telemetry import telemetry; assert type(telemetry).__name__ == 'MagicMock', type(telemetry)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(ModelError, match=r'nncf is not installed; pip install "segmv3\[export\]"'):
        quantize_openvino(as_openvino("any size"), PICTURES)
    with pytest.raises(ModelError, match=r'onnxruntime; pip install "segmv3\[export\]"'):
        quantize_onnx(as_onnx("any size"), PICTURES)

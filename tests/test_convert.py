"""What other runtimes get, and what exported files say of themselves. Whether they agree is in test_export."""

import errno
import json
import pickle
import zipfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segmv3.checkpoint import Card
from segmv3.convert import torch_export
from segmv3.convert.extras import openvino_core, scratch_folder
from segmv3.convert.graph import Graph, needs_fixed_size
from segmv3.convert.metadata import KEY, describe, from_text
from segmv3.convert.receipt import files_of, receipt_path, to_text, verify_receipt
from segmv3.convert.targets import find_target
from segmv3.errors import CheckpointError, ResourceError
from segmv3.labels import numbered_classes
from segmv3.models.zoo import NETS, create_model, net

CLASSES = numbered_classes(5)
CARD = Card(CLASSES.names, CLASSES.colors, {"score": {"miou": 61.5}}, "ab" * 32)


def fresh(name_or_net="lraspp_small_d8"):
    """A net whose normalisations are not the identity, so that folding them is seen."""
    torch.manual_seed(0)
    model = create_model(name_or_net, len(CLASSES)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


def said(model, output="low-logits", size=None):
    return describe(model, CARD, output, size, source="best.safetensors", precision="fp32")


def picture(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return fresh()


@pytest.fixture(scope="module")
def onnx_data(model):
    from segmv3.convert.onnx import to_onnx

    return to_onnx(model, said(model))


@pytest.fixture(scope="module")
def onnx_graph(onnx_data):
    import onnx

    return onnx.load_from_string(onnx_data)


# --- the graph ---


@pytest.mark.parametrize("name", ["lraspp_small_d8", "lraspp_small_d8_mmseg", "paper_02_v2_rf2_raspp"])
def test_the_graph_is_the_net(name):
    model = fresh(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.from_numpy(picture(2, 67, 94))
    with torch.inference_mode():
        low, logits = (f(images.permute(0, 3, 1, 2)) for f in (model.low_logits, model))
        found = {output: Graph(model, output)(images) for output in ("low-logits", "logits", "labels")}
    torch.testing.assert_close(found["low-logits"], low, rtol=1e-4, atol=1e-4 * low.abs().max().item())
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    assert found["labels"].dtype == torch.uint8 and found["labels"].shape == (2, 67, 94)
    assert (found["labels"] == logits.argmax(1)).float().mean() > 0.999
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in Graph(model, "labels").modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())  # left as it was


def test_nets_that_pool_over_windows_need_a_fixed_size():
    assert {name for name, settings in NETS.items() if needs_fixed_size(create_model(settings))} == {
        "lraspp_large_d8_mmseg",
        "lraspp_small_d8_mmseg",
    }


# --- ONNX ---


def test_the_onnx_graph_is_clean(onnx_graph):
    kinds = Counter(node.op_type for node in onnx_graph.graph.node)
    assert not {"BatchNormalization", "If", "Loop", "Identity", "Pad", "Div"} & set(kinds)
    # one Resize to the low map: only its size may ask for shapes
    assert kinds["Resize"] == 1 and kinds["Transpose"] == 1 and kinds["Shape"] <= 3
    assert onnx_graph.opset_import[0].version >= 17
    resize = next(node for node in onnx_graph.graph.node if node.op_type == "Resize")
    attributes = {a.name: a.s.decode() for a in resize.attribute if a.s}
    assert (attributes["mode"], attributes["coordinate_transformation_mode"]) == ("linear", "half_pixel")
    stored = [*onnx_graph.graph.initializer]
    assert not any(tensor.external_data for tensor in stored)


def test_onnx_inputs_and_outputs_have_names(onnx_graph):
    (image,), (low,) = onnx_graph.graph.input, onnx_graph.graph.output
    axes = [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]
    assert (image.name, axes) == ("image", ["batch", "height", "width", 3])
    axes = [axis.dim_param or axis.dim_value for axis in low.type.tensor_type.shape.dim]
    assert (low.name, axes) == ("low_logits", ["batch", 5, "low_height", "low_width"])


def test_onnx_keeps_its_metadata(model, onnx_data, tmp_path):
    from segmv3.convert.onnx import Onnx, with_metadata

    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_data)
    assert Onnx().read(path) == said(model)
    changed = replace(said(model), precision="int8")
    path.write_bytes(with_metadata(onnx_data, changed))
    assert Onnx().read(path) == changed


def test_onnx_with_weights_elsewhere_is_refused(onnx_data, tmp_path):
    import onnx
    from onnx.external_data_helper import set_external_data

    from segmv3.convert.onnx import Onnx

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "w.bin").write_bytes(b"0" * 4096)
    (tmp_path / "here" / "link.bin").symlink_to(tmp_path / "secret")
    path = tmp_path / "here" / "net.onnx"
    for location, fine in (("w.bin", True), ("../secret", False), ("/etc/hostname", False), ("link.bin", False)):
        graph = onnx.load_from_string(onnx_data)
        set_external_data(graph.graph.initializer[3], location)
        path.write_bytes(graph.SerializeToString())
        if fine:
            Onnx().read(path)
        else:
            with pytest.raises(CheckpointError, match="from outside its folder"):
                Onnx().read(path)


def test_external_weights_inside_layers_are_found(onnx_data, tmp_path):
    import onnx
    from onnx.external_data_helper import set_external_data

    from segmv3.convert.onnx import Onnx

    graph = onnx.load_from_string(onnx_data)
    constant = next(node for node in graph.graph.node if node.op_type == "Constant")
    tensor = next(a for a in constant.attribute if a.name == "value").t
    set_external_data(tensor, "../secret") if tensor.raw_data else tensor.external_data.add(
        key="location", value="../secret"
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(CheckpointError, match=r"'\.\./secret'"):
        Onnx().read(path)


def test_window_pooling_and_same_padding_convert_at_odd_sizes(tmp_path):
    import onnxruntime

    from segmv3.convert.onnx import to_onnx

    model = fresh("lraspp_small_d8_mmseg")
    session = onnxruntime.InferenceSession(to_onnx(model, said(model, size=(67, 94))))
    images = picture(1, 67, 94)
    with torch.inference_mode():
        expected = model.low_logits(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    (found,) = session.run(None, {"image": images})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


# --- OpenVINO ---


def test_openvino_converts_and_is_two_files(model, tmp_path):
    import openvino as ov

    from segmv3.convert.openvino import OpenVino, to_openvino, write

    converted = to_openvino(model, said(model))
    kinds = Counter(layer.get_type_name() for layer in converted.get_ops())
    assert not {"BatchNormInference", "If", "Loop", "Divide"} & set(kinds)
    assert kinds["Interpolate"] == 1 and kinds["Transpose"] == 1 and kinds["ShapeOf"] <= 1
    path = tmp_path / "net.xml"
    write(converted, path)
    assert files_of(path) == (path, tmp_path / "net.bin") and all(file.is_file() for file in files_of(path))
    assert OpenVino().read(path) == said(model)
    read = openvino_core().read_model(path)
    assert read.input("image").get_partial_shape().to_string() == "[?,?,?,3]"
    assert read.output("low_logits").get_element_type() == ov.Type.f32
    (tmp_path / "net.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no net\.bin beside it"):
        OpenVino().read(path)


# --- torch.export ---


@pytest.mark.slow
def test_torch_export_keeps_metadata_and_pickles_no_weight(model, tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(torch_export.to_torch_export(model, said(model, "labels")))
    assert torch_export.TorchExport().read(path) == said(model, "labels")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("weights_config.json"))
        entries = json.loads(archive.read(name))["config"].values()
        assert entries and not any(entry["use_pickle"] for entry in entries)
    program = torch.export.load(path).module()
    least = torch_export.least_size(model)
    for shape in ((1, 64, 96), (3, 33, 71), (1, least, least)):
        images = torch.from_numpy(picture(*shape))
        with torch.inference_mode():
            assert torch.equal(program(images), Graph(model, "labels")(images))


# --- what files say of themselves ---


def test_metadata_survives_as_text(model):
    for size in (None, (64, 96)):
        metadata = said(model, "labels", size)
        assert from_text(metadata.to_text(), "x") == metadata
        assert metadata.classes == CLASSES and metadata.net == net("lraspp_small_d8")
        assert metadata.facts == CARD.facts and metadata.source_sha256 == CARD.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9},
        {"output": "pictures"},
        {"precision": "fp8"},
        {"size": [1]},
        {"size": [0, 5]},
        {"size": [2.5, 5]},
        {"names": ["a"]},
        {"names": [1, 2, 3, 4, 5]},
        {"colors": [[1, 2]] * 5},
        {"model": None},
        {"commit": 4},
        {"unknown": 1},
    ],
)
def test_spoilt_metadata_is_one_line(model, change):
    values = json.loads(said(model).to_text()) | change
    with pytest.raises(CheckpointError, match=r"net\.onnx (says nothing|was exported by another)") as stop:
        from_text(json.dumps(values), "net.onnx")
    assert "\n" not in str(stop.value)


def test_other_files_are_one_line(tmp_path):
    (tmp_path / "net.bin").touch()
    foreign = b'<net><rt_info><other value="1"/></rt_info></net>'
    bomb = b'<!DOCTYPE net [<!ENTITY a "aaaa">]><net>&a;</net>'
    for target in map(find_target, ("onnx", "openvino", "torch-export")):
        path = tmp_path / f"net{target.suffix}"
        for data in (b"", b"\x00\x01nonsense" * 50, pickle.dumps({"a": 1}), foreign, bomb):
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match=r"damaged|was not exported by segmv3|is no OpenVINO model"):
                target.read(path)
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr(f"archive/extra/{KEY}", "{}")
    with pytest.raises(CheckpointError, match="says nothing"):
        torch_export.TorchExport().read(tmp_path / "net.pt2")


# --- receipts ---


def proved(path, data=b"data"):
    for file in files_of(path):
        file.write_bytes(data)
    receipt_path(path).write_text(to_text(path, {"any": "facts"}))
    return path


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2"])
def test_a_receipt_holds_for_its_files_only(name, tmp_path):
    path = proved(tmp_path / name)
    verify_receipt(path, trust=True)
    for file in files_of(path):
        file.write_bytes(b"Data")
        with pytest.raises(CheckpointError, match=rf"{file.name} is not the file that"):
            verify_receipt(path, trust=True)
        file.write_bytes(b"data")
    for text in ("{", "[]", '{"files": 3}', '{"files": [{"name": 1}]}', "[" * 5000):
        receipt_path(path).write_text(text)
        with pytest.raises(CheckpointError, match=r"cannot be used"):
            verify_receipt(path, trust=True)


def test_a_file_and_its_receipt_may_be_renamed_together(tmp_path):
    path = proved(tmp_path / "net.xml")
    for file in (*files_of(path), receipt_path(path)):
        file.rename(file.with_name(file.name.replace("net", "street")))
    verify_receipt(tmp_path / "street.xml")


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2"])
def test_a_file_without_its_receipt_is_opened_when_it_is_trusted(name, tmp_path):
    path = proved(tmp_path / name)
    receipt_path(path).unlink()
    says = "can run code" if name == "net.pt2" else rf"has no {name}\.receipt\.json beside it: it was moved"
    with pytest.raises(CheckpointError, match=rf"{says}.*if you know who made it, add --trust"):
        verify_receipt(path)
    verify_receipt(path, trust=True)


def test_trust_is_for_who_made_a_file_and_not_for_a_damaged_one(tmp_path):
    path = proved(tmp_path / "net.pt2")
    with pytest.raises(CheckpointError, match=r"net\.pt2 can run code when it is opened"):
        verify_receipt(path)
    path.write_bytes(b"Data")
    with pytest.raises(CheckpointError, match="is not the file that"):
        verify_receipt(path, trust=True)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("iostream error")])
def test_no_room_for_temporary_files_is_one_line(error, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    says = r"cannot hold temporary files \(No space left.*set TMPDIR"
    with pytest.raises(ResourceError, match=says) as stop, scratch_folder() as folder:
        (folder / "half").touch()
        raise error
    assert stop.value.exit_code == 4 and not folder.exists()


def test_other_faults_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a bug"), scratch_folder():
        raise RuntimeError("a bug")

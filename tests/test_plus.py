"""The plus nets: size, any input, what other runtimes get, settings, a training step."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import segmv3
from segmv3 import checkpoint
from segmv3.checkpoint import Card
from segmv3.config import LRASPPPlus, MobileNetV2, MobileNetV3, Model, load_config, net_from_dict, to_dict
from segmv3.convert import torch_export
from segmv3.convert.graph import Graph, needs_fixed_size
from segmv3.convert.metadata import describe
from segmv3.errors import ConfigError, ModelError
from segmv3.labels import numbered_classes
from segmv3.models.count import describe_nets, gmacs, parameters
from segmv3.models.fold import folded
from segmv3.models.layers import box_mean, global_pool
from segmv3.models.zoo import NETS, create_model, net_name
from segmv3.training.loop import train

CLASSES = numbered_classes(5)
CARD = Card(CLASSES.names, CLASSES.colors, {}, "ab" * 32)
TINY = Model(backbone=MobileNetV3(size="small", width=0.35, last=False), head=LRASPPPlus(channels=16))


def trained_like(net: Model) -> segmv3.models.segmenter.Segmenter:
    """A net whose normalisations are not the identity."""
    torch.manual_seed(0)
    model = create_model(net, len(CLASSES)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def low_logits(model, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.low_logits(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def of_any_size(finest: int) -> Model:
    return replace(TINY, head=replace(TINY.head, finest=finest))


@pytest.mark.parametrize(
    ("name", "finest", "count", "cost"),
    [
        ("lraspp_large_plus", 8, 2_960_451, 9.68),
        ("lraspp_large_plus", 4, 2_963_779, 12.04),
        ("lraspp_small_plus", 8, 963_379, 3.07),
        ("lraspp_small_plus", 4, 965_683, 5.30),
    ],
)
def test_sizes_and_costs(name, finest, count, cost):
    with torch.device("meta"):
        model = create_model(replace(NETS[name], head=LRASPPPlus(finest=finest)))
    assert parameters(model) == count < 3_000_000
    assert gmacs(model, (1024, 2048)) == pytest.approx(cost, abs=0.005)
    assert finest == 4 or cost < 10  # the plus net has no more than the paper's


@pytest.mark.slow
def test_the_list_has_them():
    facts = {net.name: net for net in describe_nets()}["lraspp_large_plus"]
    assert (facts.output_stride, facts.taps) == (32, "40 at 1/8, 112 at 1/16, 160 at 1/32")
    assert net_name(NETS["lraspp_small_plus"]) == "lraspp_small_plus"
    with pytest.raises(ModelError, match="did you mean lraspp_large_plus"):
        create_model("lraspp_large_pluss")


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([5, 9, 17]))
@settings(max_examples=30, deadline=None)
def test_box_mean_is_the_mean_of_what_lies_inside(height, width, side):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    found = box_mean(x, side)
    assert found.shape == x.shape
    assert torch.allclose(found, F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False), atol=1e-6)
    row, column, half = height // 2, width // 3, side // 2
    around = x[:, :, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    assert torch.allclose(found[:, :, row, column], global_pool(around)[..., 0, 0], atol=1e-6)


@pytest.mark.parametrize("finest", [8, 4])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 65), (129, 257)])
def test_any_size_gives_logits_of_that_size(shape, finest):
    model = trained_like(of_any_size(finest))
    image = torch.from_numpy(pictures(2, *shape)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = model(image)
        assert logits.shape == (2, 5, *shape) and logits.isfinite().all()
        low = model.low_logits(image)
        assert low.shape == (2, 5, -(-shape[0] // finest), -(-shape[1] // finest))
        assert torch.allclose(low[:1], model.low_logits(image[:1]), atol=1e-4)  # images do not see each other


@pytest.mark.parametrize("backbone", [MobileNetV3(output_stride=8), MobileNetV3(output_stride=16), MobileNetV2()])
def test_other_backbones_do_too(backbone):
    model = create_model(Model(backbone=replace(backbone, width=0.35), head=LRASPPPlus(channels=8)), 3).eval()
    assert model.low_logits(torch.zeros(1, 3, 65, 90)).shape == (1, 3, 9, 12)


@pytest.mark.slow
def test_runtimes_agree_at_every_size():
    import onnxruntime
    import openvino

    from segmv3.convert.onnx import to_onnx
    from segmv3.convert.openvino import to_openvino

    model = trained_like(of_any_size(4))  # all that 8 has, and one skip more
    assert not needs_fixed_size(model)
    said = describe(model, CARD, "low-logits", None, source="best.safetensors", precision="fp32")
    session = onnxruntime.InferenceSession(to_onnx(model, said))
    compiled = openvino.Core().compile_model(to_openvino(model, said), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    slim = folded(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in slim.modules())
    for shape in ((1, 1, 1), (2, 7, 5), (1, 33, 65), (2, 257, 300), (1, 300, 31)):
        images = pictures(*shape)
        expected = low_logits(model, images)
        others = (low_logits(slim, images), session.run(None, {"image": images})[0], compiled(images)[0])
        for found in others:
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_torch_export_takes_every_size(tmp_path):
    model = trained_like(TINY)
    said = describe(model, CARD, "labels", None, source="best.safetensors", precision="fp32")
    path = tmp_path / "net.pt2"
    path.write_bytes(torch_export.to_torch_export(model, said))
    program, graph = torch.export.load(path).module(), Graph(model, "labels")
    least = torch_export.least_size(model)
    for shape in ((1, least, least), (3, 33, 71), (2, 257, 300)):
        images = torch.from_numpy(pictures(*shape))
        with torch.inference_mode():
            assert torch.equal(program(images), graph(images))


def test_weights_come_back_with_their_settings(tmp_path):
    model = trained_like(of_any_size(4))
    path = tmp_path / "best.safetensors"
    checkpoint.save(model, path, classes=CLASSES)
    loaded, card = checkpoint.load(path)
    assert loaded.config == model.config and card.names == CLASSES.names
    images = pictures(1, 50, 70)
    np.testing.assert_array_equal(low_logits(loaded, images), low_logits(model, images))
    predict = segmv3.load(path, backend="torch", precision="fp32", threads=1)
    expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1)[0].numpy()
    assert (predict(images[0]) == expected).mean() > 0.999


def test_settings_make_the_round_trip():
    for net in (NETS["lraspp_large_plus"], of_any_size(4)):
        assert net_from_dict(json.loads(json.dumps(to_dict(net)))) == net


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"finest": 16}, "head.finest cannot be 16"),
        ({"finest": True}, "head.finest cannot be True"),
        ({"channels": 0}, "head.channels must lie between 1"),
        ({"bn_eps": 0.0}, "head.bn-eps must lie between"),
        ({"gate": "sigmoid"}, "gate"),
    ],
)
def test_impossible_settings_are_refused(change, says):
    values = to_dict(TINY)
    values["head"] |= change
    with pytest.raises((ValueError, TypeError), match=says):
        net_from_dict(values)


def test_the_config_and_its_flags(pytestconfig, capsys):
    path = pytestconfig.rootpath / "configs" / "lraspp_large_plus.py"
    assert load_config(path).model == NETS["lraspp_large_plus"]
    assert load_config(path, ["--model.head.finest", "4"]).model.head == LRASPPPlus(finest=4)
    with pytest.raises(ConfigError, match=r"model\.head\.channels"):
        load_config(path, ["--model.head.channels", "5000"])
    with pytest.raises(SystemExit) as stop:
        load_config(path, ["--model.head.finest", "16"])
    assert stop.value.code == 2 and "--model.head.finest" in capsys.readouterr().err


def test_batch_norm_needs_two_values_at_the_deep_map():
    model = create_model(TINY)
    with pytest.raises(ModelError, match="batch normalisation needs two"):
        model.check_trainable(1, (32, 32))
    model.check_trainable(1, (33, 32))
    for batch, crop in ((1, (33, 32)), (2, (8, 8))):
        model.train()(torch.rand(batch, 3, *crop) * 255)


@pytest.mark.slow
def test_it_trains(config, tmp_path: Path):
    net = replace(NETS["lraspp_small_plus"], head=LRASPPPlus(channels=32, finest=4))
    model = create_model(net, 4).train()
    model(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    best = train(replace(config, model=net), tmp_path / "run", device="cpu", threads=1).metrics
    assert best["miou"] is not None and best["step"] in (6, 12)
    assert checkpoint.load(tmp_path / "run" / "best.safetensors")[0].config == net

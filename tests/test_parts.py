"""What every head and every backbone keeps to, segmv3's own and strangers'."""

import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import segmv3
from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import (
    LRASPP,
    RASPP,
    Backbone,
    Head,
    LRASPPDecoder,
    LRASPPPlus,
    MobileNetV2,
    MobileNetV3,
    MobileSeg,
    Model,
    Timm,
    load_config,
    load_parts,
    net_from_dict,
    to_dict,
)
from segmv3.errors import CheckpointError, ConfigError, ModelError
from segmv3.mini_city import write_mini_city
from segmv3.models.fold import folded
from segmv3.models.zoo import create_model

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
from own_head import Sum  # noqa: E402

HEADS = [
    LRASPP(tap="output"),
    LRASPP(),
    LRASPPDecoder(),
    LRASPPDecoder(pool="global", skip_strides=(4, 8)),
    LRASPPPlus(),
    LRASPPPlus(finest=4),
    MobileSeg(),
    RASPP(),
    Sum(),
]
BACKBONES = [
    MobileNetV3(size="small", output_stride=16),
    MobileNetV3(width=0.5, tail="rf2", padding="same"),
    MobileNetV2(width=0.35),
    Timm(name="mobilenetv4_conv_small_050"),
]
NETS = [Model(backbone=BACKBONES[0], head=head) for head in HEADS]
NETS += [Model(backbone=backbone, head=LRASPP(tap="output", channels=16)) for backbone in BACKBONES[1:]]


def title(net):
    return f"{type(net.head).__name__} on {net.backbone.title}"


@pytest.fixture(params=NETS, ids=title)
def net(request):
    return request.param


def test_it_is_a_frozen_dataclass_and_comes_back_from_a_header(net):
    assert net_from_dict(to_dict(net)) == net
    for part in (net.head, net.backbone):
        with pytest.raises(AttributeError):
            part.channels = 3
        assert pickle.loads(pickle.dumps(part)) == part
        assert part.__doc__ and not [f.name for f in fields(part) if f.default is MISSING]


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_it_gives_logits_for_any_size(net, size):
    model = create_model(net, 5).eval()
    image = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with torch.no_grad():
        logits = model(image)
        features = model.backbone(model.normalize(image))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()
    assert [each.shape[1] for each in features] == list(model.backbone.channels)
    assert len(features) == len(net.head.taps()) + 1
    for tap, each in zip(net.head.taps(), features, strict=False):
        assert each.shape[2:] == tuple(-(-side // min(tap.stride, net.backbone.output_stride)) for side in size)


def test_every_weight_learns(net):
    model = create_model(net, 5).train()
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model(image).square().mean().backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]


def test_folded_it_computes_the_same(net):
    torch.manual_seed(0)
    model = create_model(net, 5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = model.eval().low_logits(image), folded(model).low_logits(image)
    assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


def test_its_classifiers_have_a_row_for_each_class(net):
    state = create_model(net, 7).state_dict()
    rows = [tensor.shape[0] for name, tensor in state.items() if name.startswith(net.classifiers)]
    assert rows and set(rows) == {7}


def test_a_weight_file_of_it_opens(net, tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(create_model(net, 5), path)
    predict = segmv3.load(path, backend="torch", threads=1, parts=[Sum])
    assert predict(np.zeros((40, 56, 3), np.uint8)).shape == (40, 56)
    assert pickle.loads(pickle.dumps(predict))(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8)


# ---- what cannot be ----


def foreign(tmp_path):
    """A weight file whose head nobody knows here."""
    path = tmp_path / "foreign.safetensors"
    segmv3.save(create_model(Model(head=Sum()), 5), path)
    known, unknown = (f'\\"kind\\": \\"{name}\\"'.encode() for name in ("Sum", "Los"))
    assert known in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(known, unknown))
    return path


def test_a_weight_file_says_which_part_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"foreign.safetensors: its net has the part Los, .* parts=\[\.\.\.\]"):
        checkpoint.load(foreign(tmp_path))


def test_an_unknown_kind_of_part_is_refused():
    with pytest.raises(ModelError, match="int is no dataclass that inherits Head or Backbone"):
        net_from_dict(to_dict(Model()), parts=[int])
    with pytest.raises(ModelError, match=r"parts is the class Sum; give a list of classes, parts=\[Sum\]"):
        net_from_dict(to_dict(Model()), parts=Sum)


def test_a_part_that_lacks_a_method_is_named_with_its_place(tmp_path):
    path, half = tmp_path / "half.safetensors", tmp_path / "half_head.py"
    segmv3.save(create_model(Model(head=Sum()), 5), path)
    path.write_bytes(path.read_bytes().replace(*(f'\\"kind\\": \\"{name}\\"'.encode() for name in ("Sum", "Won"))))
    half.write_text(
        "from dataclasses import dataclass\n\nfrom segmv3.config import Head\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Won(Head):\n    def taps(self):\n        return ()\n"
    )
    load_parts(half)
    with pytest.raises(CheckpointError, match=r"the part Won \(.*half_head.py, line 6\) lacks build") as caught:
        checkpoint.load(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("low, mid, deep = channels", "ValueError: not enough values to unpack .*, line 14"),
        ("absent.Conv2d()", "NameError: name .absent. is not defined .*, line 14"),
    ],
)
def test_a_part_that_cannot_be_built_is_named_with_its_line(tmp_path, monkeypatch, capsys, broken, message):
    monkeypatch.chdir(tmp_path)
    Path("bad_head.py").write_text(
        "from dataclasses import dataclass\n\nfrom torch import nn\n\nfrom segmv3.config import Head, Tap\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Bad(Head):\n    def taps(self):\n        return (Tap(8),)\n\n"
        f"    def build(self, channels, num_classes, *, bn_momentum):\n        {broken}\n"
    )
    Path("bad.py").write_text(
        "from dataclasses import replace\n\nfrom bad_head import Bad\n\nfrom segmv3.config import load_config\n\n"
        "base = load_config('quickstart')\nconfig = replace(base, model=replace(base.model, head=Bad()))\n"
    )
    write_mini_city(tmp_path / "city", train=2, val=1, size=(64, 128))
    sys.modules.pop("bad_head", None)
    assert main(["train", "bad.py", "--data.root", "city", "--run", "run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be built" in line]
    assert re.search(r"the part Bad cannot be built: it fails with .*bad_head.py, line", line)
    assert re.search(message, line)


def test_two_parts_of_one_name_are_refused():
    twin = dataclass(frozen=True, kw_only=True)(type("LRASPP", (LRASPP,), {"__module__": "theirs"}))
    with pytest.raises(ModelError, match=r"two parts have the name LRASPP \(segmv3.models.heads and theirs\)"):
        net_from_dict(to_dict(Model()), parts=[twin])
    assert net_from_dict(to_dict(Model())) == Model()  # only imported, it disturbs nobody


def test_two_imported_parts_of_one_name_matter_where_the_name_is_used():
    kinds = [
        dataclass(frozen=True, kw_only=True)(type("Twice", (LRASPP,), {"__module__": module})) for module in ("a", "b")
    ]
    assert net_from_dict(to_dict(Model())) == Model()
    net = Model(head=kinds[1]())
    with pytest.raises(ModelError, match=r"two parts have the name Twice \(a and b\)"):
        net_from_dict(to_dict(net))
    assert net_from_dict(to_dict(net), parts=[kinds[1]]) == net


def test_a_part_without_a_method_cannot_be_made():
    class Half(Head):
        def taps(self):
            return ()

    with pytest.raises(TypeError, match="abstract method '?build"):
        Half()
    with pytest.raises(TypeError, match="abstract"):
        Backbone()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import not_here\n",
            r"own.py fails with ModuleNotFoundError: No module named 'not_here' \(.*own.py, line 1\)",
        ),
        ("from part import X\n", r"own.py fails with ZeroDivisionError: .* \(.*part.py, line 2\)"),
    ],
)
def test_a_part_that_cannot_be_imported_is_named_by_file_and_line(tmp_path, text, message):
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "part.py").write_text("X = 1\n1 / 0\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "own.py")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Timm(name="no_such_net"), r"timm cannot build 'no_such_net' with output stride 32 \(Unknown model"),
        (Timm(), "timm's mobilenetv4_conv_small has no expanded map at stride 8"),
        (Timm(name="efficientvit_m0"), "efficientvit_m0 has its deepest map at stride 64, not at 32"),
    ],
)
def test_what_timm_lacks_is_one_line(backbone, message):
    with pytest.raises(ModelError, match=message):
        create_model(Model(backbone=backbone))


def test_a_net_of_timm_that_knows_no_output_stride_is_built_at_its_own():
    net = create_model(Model(backbone=Timm(name="efficientvit_b0"), head=LRASPPPlus(channels=16)), 3).eval()
    assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_flags_are_those_of_the_part_in_the_config(tmp_path):
    (tmp_path / "streets.py").write_text(
        "from segmv3.config import *\nfrom segmv3.config import Config, Data, Model, Schedule, Timm, LRASPPPlus\n"
        "from pathlib import Path\n"
        "config = Config(model=Model(backbone=Timm(), head=LRASPPPlus()), data=Data(dataset='folder', root=Path('.')),"
        " schedule=Schedule(steps=1))\n"
    )
    config = load_config(tmp_path / "streets.py", ["--model.backbone.name", "resnet18", "--model.head.finest", "4"])
    assert config.model == replace(config.model, backbone=Timm(name="resnet18"), head=LRASPPPlus(finest=4))


def test_the_example_of_a_head_works_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own_head.py", "own_head_config.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    assert type(load_config("own_head_config.py").model.head).__name__ == "Sum"


@pytest.mark.slow
def test_the_example_trains_and_predicts(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "segmv3", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    city = ["data", "mini-city", tmp_path / "city", "--train", 4, "--val", 2, "--size", 64, 128]
    assert run(*city).returncode == 0
    small = ["--data.batch-size", 2, "--data.crop-size", 64, 64, "--data.workers", 0, "--threads", 1]
    steps = ["--schedule.steps", 2, "--schedule.eval-every", 2, "--schedule.warmup-steps", 0]
    config = EXAMPLES / "own_head_config.py"
    trained = run("train", config, "--data.root", tmp_path / "city", "--run", tmp_path / "run", *small, *steps)
    assert trained.returncode == 0, trained.stderr
    weights, street = tmp_path / "run/best.safetensors", tmp_path / "city/leftImg8bit/val"
    predict = ["predict", street, "--weights", weights, "--output", tmp_path / "out", "--backend", "torch"]
    unknown = run(*predict)
    assert unknown.returncode == 2
    assert "its net has the part Sum, which segmv3 does not have" in unknown.stderr
    known = run(*predict, "--parts", EXAMPLES / "own_head.py")
    assert known.returncode == 0, known.stderr

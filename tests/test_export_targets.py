"""What every export target keeps, ours and one of a user: it is written, proved, opened, and refused in one line."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import segmv3
from segmv3.convert.base import Target, check_target
from segmv3.convert.receipt import files_of, receipt_path
from segmv3.convert.targets import NAMES, find_target, target_of
from segmv3.errors import CheckpointError, ModelError, OutputError
from segmv3.exporting import pictures, writing
from segmv3.images import write_png
from segmv3.models.zoo import create_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_target.py"


def own_target() -> Target:
    """The example's, from a module that pickle finds again."""
    if "own_target" not in sys.modules:
        spec = importlib.util.spec_from_file_location("own_target", EXAMPLE)
        module = importlib.util.module_from_spec(spec)
        sys.modules["own_target"] = module
        spec.loader.exec_module(module)
    return sys.modules["own_target"].Npz()


SLOW = ("openvino", "torch-export", "onnx-int8", "openvino-int8")
ALL = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in (*NAMES, "own")]


def target_named(name: str) -> Target:
    target = own_target() if name == "own" else find_target(name)
    for package in target.needs:
        pytest.importorskip(package)
    return target


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch):
    monkeypatch.setattr(writing, "_OTHER_SIZES", ((64, 128), (41, 75)))
    monkeypatch.setattr(writing, "_TIMED_SIZE", (64, 128))
    monkeypatch.setattr(writing, "_ROUNDS", 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "street.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 4), path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(8):
        patches = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), np.uint8)
        write_png(folder / f"{seed}.png", patches.repeat(16, 0).repeat(16, 1))
    return folder


# --- one target after another ---


@pytest.mark.parametrize("name", ALL)
def test_a_file_is_proved_and_computes_what_pytorch_computes(name, weights, photographs, tmp_path):
    target = target_named(name)
    done = segmv3.export(
        weights, tmp_path / f"net{target.suffix}", target=target, images=pictures.photographs(str(photographs), 2)
    )
    assert done.files == target.files(done.path) and all(file.is_file() for file in done.files)
    assert {(found.size, found.images) for found in done.agreement.sizes} == {((64, 128), 2), ((41, 75), 2)}
    receipt = json.loads(receipt_path(done.path).read_text())
    assert (receipt["to"], receipt["precision"]) == (target.name, target.precision)
    assert ("latency_ms" in receipt) is bool(target.baseline)
    picture = segmv3.read_image(photographs / "0.png")
    predict = segmv3.load(done.path, targets=[target], trust=target.runs_code)
    expected = segmv3.load(weights, backend="torch", precision="fp32")(picture)
    assert np.mean(predict(picture) == expected) > (0.9 if target.precision == "int8" else 0.999)
    assert predict(np.stack([picture, picture])).shape == (2, 64, 128)
    assert (predict.precision, predict.backend) == (target.precision, target.runtimes[0])
    again = pickle.loads(pickle.dumps(predict))
    assert np.array_equal(again(picture), predict(picture))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("output", ["logits", "labels"])
def test_a_fixed_size_and_every_output(name, output, weights, photographs, tmp_path):
    target = target_named(name)
    path = tmp_path / f"net{target.suffix}"
    options = {"images": pictures.photographs(str(photographs), 1), "output_kind": output, "size": (64, 96)}
    assert segmv3.export(weights, path, target=target, **options).facts["size"] == [64, 96]
    predict = segmv3.load(path, targets=[target], trust=True)
    assert (predict.output, predict.size) == (output, (64, 96))
    assert predict(np.zeros((2, 64, 96, 3), np.uint8)).shape == (2, 64, 96)
    with pytest.raises(ModelError, match="takes images of 64x96"):
        predict(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("name", (*NAMES, "own"))
def test_a_target_is_plain_and_frozen(name):
    target = target_named(name)
    assert is_dataclass(target) and target == copy.deepcopy(target) and hash(target) == hash(copy.copy(target))
    with pytest.raises(FrozenInstanceError):
        target.anything = 1
    assert find_target(target) is target and target_of(Path(f"net{target.suffix.upper()}"), [target]) is target
    assert target.files(Path(f"a/net{target.suffix}"))[0] == Path(f"a/net{target.suffix}")
    assert target.precision in target.precisions(target.precision, target.runtimes[0])
    assert not target.calibrated or target.baseline


@pytest.mark.parametrize("name", (*NAMES, "own"))
def test_bad_input_of_every_target_is_one_line(name, weights, photographs, tmp_path, monkeypatch):
    target = target_named(name)
    path = tmp_path / f"net{target.suffix}"

    def refused(kind, **options):
        with pytest.raises(kind) as stop:
            segmv3.export(**{"weights": weights, "output": path, "target": target} | options)
        assert "\n" not in str(stop.value) and not path.exists()
        return str(stop.value)

    assert f"must end in {target.suffix}" in refused(OutputError, output=tmp_path / "net.other")
    assert "too small" in refused(ModelError, size=(8, 64))
    if target.calibrated:
        assert "is calibrated on real images" in refused(ModelError)
    with pytest.raises(CheckpointError, match="does not exist"):
        segmv3.load(path, targets=[target], trust=True)
    for content in (b"", b"\0nonsense" * 99):
        for file in target.files(path):
            file.write_bytes(content)
        with pytest.raises(CheckpointError) as stop:
            segmv3.load(path, targets=[target], trust=True)
        assert "\n" not in str(stop.value)
        for file in target.files(path):
            file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("segmv3.convert.base.find_spec", lambda _: None)
        if target.needs:
            assert f"the {target.name} export needs" in refused(ModelError)


# --- a target of one's own ---


@pytest.mark.slow
def test_the_example_is_short_and_runs(weights, photographs, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) < 40
    command = [sys.executable, EXAMPLE, weights, tmp_path / "street.npz", photographs]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "(64, 128)" in done.stdout


def test_an_own_file_opens_by_its_target_only(weights, tmp_path):
    target = own_target()
    done = segmv3.export(weights, tmp_path / "net.npz", target=target, size=(64, 128))
    for load in (segmv3.load, segmv3.load_classifier):
        with pytest.raises(CheckpointError, match=r"net\.npz was written by an export target .*\('net.npz', targets="):
            load(done.path)
    assert files_of(done.path) == (done.path,)
    text = receipt_path(done.path).read_text()
    receipt_path(done.path).unlink()
    with pytest.raises(CheckpointError, match=r"has no net\.npz\.receipt\.json beside it"):
        segmv3.load(done.path, targets=[target], trust=True)
    receipt_path(done.path).write_text(text)
    done.path.write_bytes(done.path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="is not the file that"):
        segmv3.load(done.path, targets=[target], trust=True)


@dataclass(frozen=True)
class NoOpen(Target):
    name = "half"
    suffix = ".half"

    def write(self, model, metadata, path, images=(), say=print):
        path.write_bytes(b"x")


class Nameless(NoOpen):
    name = ""

    def open(self, path, metadata, runtime, precision, threads):
        raise AssertionError


class Dotless(Nameless):
    name = "half"
    suffix = "half"


class Absent(Nameless):
    name = "absent"
    needs = ("no_such_package",)


class Twin(Absent):
    name = "twin"
    needs = ()
    runs_code = True


def test_what_is_no_target_is_one_line(weights, tmp_path):
    for target, says in (
        (NoOpen(), r"NoOpen is no export target: it lacks open\(\)"),
        (Nameless(), "Nameless is no export target: it lacks name"),
        (Dotless(), "Dotless is no export target: its suffix needs a dot"),
        ("coreml", "there is no export target 'coreml'; choose from onnx, openvino"),
        (7, "7 is no export target; derive it from segmv3.convert.base.Target"),
        (NoOpen, "is no export target; derive it"),
        (Absent(), r"the absent export needs no_such_package .*pip install no_such_package"),
    ):
        with pytest.raises(ModelError, match=says) as stop:
            segmv3.export(weights, tmp_path / "net.half", target=target)
        assert "\n" not in str(stop.value) and stop.value.exit_code == 2
    with pytest.raises(ModelError, match=r"Absent and Twin both write \.half"):
        segmv3.load(tmp_path / "net.half", targets=[Absent(), Twin()])
    (tmp_path / "net.half").touch()
    receipt_path(tmp_path / "net.half").write_text("{}")
    with pytest.raises(CheckpointError, match=r"receipt\.json cannot be used"):
        segmv3.load(tmp_path / "net.half", targets=[Twin()])
    with pytest.raises(ModelError, match="it lacks"):
        segmv3.load(tmp_path / "net.half", targets=[NoOpen()])
    assert check_target(Twin()) == Twin()


def test_a_converter_that_cannot_take_a_net_is_one_line(weights, tmp_path):
    class Fails(type(own_target())):
        def write(self, *args):
            raise RuntimeError("no operator\nfor this")

    with pytest.raises(ModelError, match=r"cannot hold this net \(RuntimeError: no operator.*for this\); a fixed size"):
        segmv3.export(weights, target=Fails(), output=tmp_path / "net.npz")
    assert not list(tmp_path.glob("net*"))

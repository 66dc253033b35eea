"""Exporting as a person does it: files, receipts, refusals. The converted nets really run here."""

import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import segmv3
from segmv3.commands.export import run
from segmv3.config import Data
from segmv3.convert.receipt import receipt_path, verify_receipt
from segmv3.convert.targets import find_target
from segmv3.errors import CheckpointError, DataError, ModelError, OutputError, Segmv3Error
from segmv3.exporting import pictures, writing
from segmv3.exporting.pictures import labelled, photographs
from segmv3.exporting.writing import default_path
from segmv3.labels import read_classes
from segmv3.models.zoo import create_model
from segmv3.runtime.machine import cpu_flags
from segmv3.runtime.parity import DisagreementError


def export(weights, to, path, pictures=None, **options):
    return segmv3.export(weights, path, target=to, images=pictures, **options)


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch):
    monkeypatch.setattr(writing, "_OTHER_SIZES", ((64, 128), (41, 75)))
    monkeypatch.setattr(pictures, "_DRAWN_SIZE", (64, 128))
    monkeypatch.setattr(writing, "_TIMED_SIZE", (64, 128))
    monkeypatch.setattr(writing, "_ROUNDS", 2)


def save_net(path, name="lraspp_small_d8", classes=None):
    torch.manual_seed(0)
    segmv3.save(create_model(name, len(classes) if classes else 4), path, classes=classes)
    return path


@pytest.fixture
def weights(folder, tmp_path):
    return save_net(tmp_path / "street.safetensors", classes=read_classes(folder)[0])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder):
    return {path.name: digest(path) for path in folder.iterdir() if path.is_file()}


def test_a_receipt_tells_everything(weights, folder, tmp_path, capsys):
    out = tmp_path / "out" / "net.xml"
    run([str(weights), "--to", "openvino", "-o", str(out), "--data.root", str(folder), "--limit", "2"])
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "48x64 2" in printed and "41x75" in printed and "same labels" in printed and "on 2 labelled images" in printed
    )
    assert f"wrote {out} and {out.with_suffix('.bin')}" in printed and f"receipt {receipt_path(out)}" in printed
    assert sorted(listing(out.parent)) == ["net.bin", "net.xml", "net.xml.receipt.json"]
    receipt = json.loads(receipt_path(out).read_text())
    assert [(f["name"], f["sha256"]) for f in receipt["files"]] == [
        (file.name, digest(file)) for file in (out, out.with_suffix(".bin"))
    ]
    assert receipt["source"] == {"name": str(weights), "sha256": digest(weights)}
    assert receipt["command"].startswith("segmv3 export ") and receipt["command"].endswith("--limit 2")
    assert (receipt["to"], receipt["output"], receipt["size"], receipt["drawn"]) == (
        "openvino",
        "low-logits",
        None,
        False,
    )
    agreement = receipt["agreement"]
    assert [size["size"] for size in agreement["sizes"]] == [[48, 64], [64, 128], [41, 75]]
    assert all(0 < size["relative_rms"] < 1e-5 and size["label_agreement"] > 99.9 for size in agreement["sizes"])
    assert agreement["scored_images"] == 2 and abs(agreement["miou_reference"] - agreement["miou_candidate"]) < 0.1
    assert receipt["machine"]["packages"]["openvino"] and receipt["limits"]["relative_rms"] == 1e-4
    verify_receipt(out)


@pytest.mark.parametrize("output", ["low-logits", "logits", "labels"])
def test_every_output_of_onnx_is_proved_on_drawn_scenes(output, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([str(weights), "--to", "onnx", "--output-kind", output])
    printed = capsys.readouterr().out
    assert "proved on 2 drawn scenes of mini-city; --images DIR proves it on your own" in printed
    assert "wrote street.onnx (" in printed
    receipt = json.loads((tmp_path / "street.onnx.receipt.json").read_text())
    assert receipt["drawn"] and receipt["output"] == output
    differences = [size["max_logit_difference"] for size in receipt["agreement"]["sizes"]]
    assert all(d is None for d in differences) if output == "labels" else max(differences) < 1e-3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_fixed_size_is_proved_at_that_size(folder, tmp_path):
    weights = save_net(tmp_path / "windows.safetensors", "lraspp_small_d8_mmseg", read_classes(folder)[0])
    with pytest.raises(ModelError, match=r"pools over windows.* add --size HEIGHT WIDTH"):
        export(weights, "onnx", tmp_path / "net.onnx")
    pictures = labelled(Data(dataset="folder", root=folder), "val")
    done = export(weights, "onnx", tmp_path / "net.onnx", size=(64, 96), pictures=pictures)
    assert [(found.size, found.images) for found in done.agreement.sizes] == [((64, 96), 3)]
    assert done.agreement.scored_images == 3 and done.facts["size"] == [64, 96]


@pytest.mark.slow
def test_torch_export_is_proved_and_opens_when_it_is_trusted(weights, folder, tmp_path):
    path = tmp_path / "net.pt2"
    done = export(weights, "torch-export", path, pictures=photographs(str(folder / "val" / "images"), 1))
    assert done.facts["images"].startswith("1 of 3 images of")
    image = segmv3.read_image(folder / "val" / "images" / "scene_0.png")
    expected = segmv3.load(weights, backend="torch", precision="fp32")(image)
    assert np.array_equal(segmv3.load(path, trust=True)(image), expected)
    with pytest.raises(CheckpointError, match=r"can run code when it is opened.*add --trust"):
        segmv3.load(path)


class Spoilt:
    """A runtime that computes something else."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def run(self, images):
        return self.backend.run(images)[:, ::-1]


@pytest.mark.slow
def test_an_export_that_disagrees_leaves_nothing(weights, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    export(weights, "onnx", path)
    before = listing(tmp_path)
    opened = writing._open
    monkeypatch.setattr(writing, "_open", lambda *arguments: Spoilt(opened(*arguments)))
    with pytest.raises(DisagreementError, match=r"the onnx export of .* disagrees with PyTorch at 64x128") as stop:
        export(weights, "onnx", path, overwrite=True)
    assert stop.value.exit_code == 2 and "\n" not in str(stop.value) and "limit 0.0001" in str(stop.value)
    with pytest.raises(DisagreementError):
        export(weights, "onnx", tmp_path / "other.onnx")
    assert listing(tmp_path) == before and not (tmp_path / "other.onnx").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".segmv3")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("an image is damaged")])
def test_whatever_stops_it_leaves_nothing(error, weights, tmp_path, monkeypatch):
    def stop(*_):
        raise error

    monkeypatch.setattr(writing, "compare", stop)
    before = listing(tmp_path)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else DataError):
        export(weights, "onnx", tmp_path / "net.onnx")
    assert listing(tmp_path) == before and not [e for e in tmp_path.iterdir() if e.name.startswith(".segmv3")]


def test_a_full_disk_is_named(weights, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segmv3.files.os.fsync", full)
    with pytest.raises(Segmv3Error, match="the disk is full") as stop:
        export(weights, "torch-export", tmp_path / "net.pt2", size=(32, 32))
    assert stop.value.exit_code == 4 and not (tmp_path / "net.pt2").exists()


def test_bad_input_is_one_line(weights, folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "net.onnx"
    out.write_text("mine")
    new = str(tmp_path / "new.onnx")
    images = folder / "val" / "images"
    (tmp_path / "text.png").write_text("no picture")
    segmv3.save(create_model("lraspp_small_d8", 7), tmp_path / "seven.safetensors")
    for arguments, says in (
        ([weights, "--to", "onnx", "-o", out], "net.onnx exists; choose another --output or add --overwrite"),
        ([weights, "--to", "onnx", "-o", tmp_path / "net.xml"], "must end in .onnx for --to onnx"),
        ([weights, "--to", "onnx", "-o", images], "must end in .onnx"),
        ([tmp_path / "missing.safetensors", "--to", "onnx", "-o", new], "missing.safetensors does not exist"),
        ([weights, "--to", "onnx", "-o", new, "--size", "0", "64"], "--size is 0 64"),
        ([weights, "--to", "onnx", "-o", new, "--size", "8", "64"], "--size 8 64 is too small"),
        ([weights, "--to", "onnx", "-o", new, "--limit", "0"], "--limit is 0"),
        ([weights, "--to", "onnx", "-o", new, "--threads", "0"], "--threads is 0"),
        ([weights, "--to", "onnx", "-o", new, "--images", tmp_path / "nothing"], "nothing does not exist"),
        ([weights, "--to", "onnx", "-o", new, "--images", tmp_path / "text.png"], "text.png cannot be opened"),
        ([weights, "--to", "onnx", "-o", new, "--images", images, "--data.root", folder], "choose one of them"),
        ([weights, "--to", "onnx", "-o", new, "--data.root", folder, "--split", "test"], "found 0 images"),
        ([tmp_path / "seven.safetensors", "--to", "onnx", "-o", new, "--data.root", folder], "7 classes stored"),
        ([weights, "--to", "onnx-int8", "-o", new], "is calibrated on real images; add --images SOURCE or --data.root"),
    ):
        with pytest.raises(Segmv3Error) as stop:
            run([str(argument) for argument in arguments])
        assert says in str(stop.value) and "\n" not in str(stop.value) and stop.value.exit_code == 2, arguments
    assert out.read_text() == "mine" and not (tmp_path / "new.onnx").exists()
    with pytest.raises(Segmv3Error, match="invalid choice 'coreml' for argument '--to'. Expected one of"):
        run([str(weights), "--to", "coreml"])


@pytest.fixture
def classifier(tmp_path):
    """A net of three colours, with the folders of its pictures."""
    from segmv3.models.zoo import create_backbone

    torch.manual_seed(0)
    model = create_backbone("small", num_classes=3, width=0.35)
    torch.nn.init.normal_(model.classifier.weight, 0, 1)
    view = {"resize": 36, "crop_size": [32, 32], "interpolation": "bicubic"}
    segmv3.save(model, tmp_path / "c.safetensors", classes=("blue", "green", "red"), config={"data": view})
    for split in ("train", "val"):
        for place, name in enumerate(("blue", "green", "red")):
            (tmp_path / "colours" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng([place, i]).integers(0, 90, (40, 52, 3), np.uint8)
                pixels[..., place] += 120
                Image.fromarray(pixels).save(tmp_path / "colours" / split / name / f"{i}.png")
    return tmp_path / "c.safetensors"


def test_a_classifier_is_proved_and_opened_again(classifier, tmp_path, capsys):
    from segmv3.cli import main

    path, colours = tmp_path / "c.onnx", tmp_path / "colours"
    assert main(["export", str(classifier), "--to", "onnx", "-o", str(path), "--data.root", str(colours)]) == 0
    assert "before the file: shorter side to 36 (bicubic), then the middle 32x32" in capsys.readouterr().out
    facts = json.loads((tmp_path / "c.onnx.receipt.json").read_text())
    assert facts["view"] == {"resize": 36, "crop_size": [32, 32], "interpolation": "bicubic"}
    assert facts["agreement"]["scored_images"] == 12 and facts["output"] == "class-logits"
    assert facts["agreement"]["top1_reference"] == facts["agreement"]["top1_candidate"]
    assert all(size["top1_agreement"] == 100 for size in facts["agreement"]["sizes"])
    assert max(size["max_logit_difference"] for size in facts["agreement"]["sizes"]) < 1e-3

    image = segmv3.read_image(colours / "val" / "red" / "0.png")
    there, here = segmv3.load_classifier(path), segmv3.load_classifier(classifier)
    assert there.card.names == ("blue", "green", "red") and there.view == here.view
    assert torch.allclose(there.probabilities(image), here.probabilities(image), atol=1e-5)
    assert [name for name, _ in there(image)] == [name for name, _ in here(image)]
    scores = []
    for weights in (path, classifier):
        out = tmp_path / "scores.json"
        evaluate = ["classify", "evaluate", "--weights", str(weights), "--data.root", str(colours), "--overwrite"]
        evaluate += ["--output", str(out), "--data.resize", "36", "--data.crop-size", "32", "32"]
        evaluate += ["--data.interpolation", "bicubic"]
        assert main(evaluate) == 0
        scores.append(json.loads(out.read_text()))
    assert scores[0]["classes"] == scores[1]["classes"]
    assert scores[1]["top1"] == facts["agreement"]["top1_reference"]
    assert scores[0]["backend"] == "onnxruntime" and scores[1]["backend"] == "torch"


def test_each_kind_of_net_is_told_its_commands(classifier, weights, folder, tmp_path, capsys, monkeypatch):
    from segmv3.cli import main

    def fails(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    exported, streets = tmp_path / "c.onnx", tmp_path / "s.onnx"
    segmv3.export(classifier, exported, target="onnx", size=(48, 48))
    segmv3.export(weights, streets, target="onnx", size=(64, 64))
    assert json.loads((tmp_path / "c.onnx.receipt.json").read_text())["view"]["resize"] == 54
    picture = tmp_path / "colours" / "val" / "red" / "0.png"
    with pytest.raises(CheckpointError, match="is a classifier: use it with segmv3 classify predict"):
        segmv3.load(exported)
    assert "is a segmentation net: use it with segmv3 predict" in fails(
        "classify", "predict", picture, "--weights", streets
    )
    root = ("--data.root", tmp_path / "colours")
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # else pytest makes it an error
        sized = fails("classify", "evaluate", "--weights", exported, *root)
    assert "takes images of 48x48 (height x width) only" in sized
    assert "was scored in training with --data.resize 54 --data.crop-size 48 48" in sized
    again = ("export", classifier, "--to", "onnx", "-o", tmp_path / "n.onnx")
    assert "leave --output-kind out" in fails(*again, "--output-kind", "labels")
    assert "found no class folders" in fails(*again, "--data.root", folder, "--split", "test")
    monkeypatch.setattr("segmv3.runtime.loading.find_spec", lambda name: None)
    assert "needs onnxruntime" in fails("classify", "predict", picture, "--weights", exported)
    monkeypatch.undo()
    (tmp_path / "c.onnx.receipt.json").unlink()
    assert "has no c.onnx.receipt.json beside it" in fails("classify", "predict", picture, "--weights", exported)
    assert main(["classify", "predict", str(picture), "--weights", str(exported), "--trust", "--top", "1"]) == 0


@pytest.mark.parametrize(
    ("to", "needs"),
    [("onnx", "onnx and onnxruntime"), ("openvino", "openvino"), ("openvino-int8", "openvino and nncf")],
)
def test_a_missing_extra_is_one_line_with_its_remedy(to, needs, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("segmv3.convert.base.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=rf"the {to} export needs {needs} .*pip install \"segmv3\[export\]\"") as stop:
        export(weights, to, tmp_path / f"net{find_target(to).suffix}")
    assert stop.value.exit_code == 2


def test_int8_is_calibrated_on_train_and_measured(weights, folder, tmp_path, capsys, monkeypatch):
    """The way around the quantiser; the quantiser itself has tests of its own."""
    from dataclasses import replace

    import onnx

    from segmv3.convert.metadata import KEY, from_text
    from segmv3.convert.onnx import with_metadata

    seen = []

    def quantize(data, images, *, progress=None):
        seen.extend(images)
        text = next(e.value for e in onnx.load_from_string(data).metadata_props if e.key == KEY)
        return with_metadata(data, replace(from_text(text, ""), precision="int8"))

    monkeypatch.setattr("segmv3.convert.int8.quantize_onnx", quantize)
    path = tmp_path / "net.onnx"
    run([str(weights), "--to", "onnx-int8", "-o", str(path), "--data.root", str(folder)])
    assert len(seen) == 6 and all(image.shape == (48, 64, 3) for image in seen)
    receipt = json.loads(receipt_path(path).read_text())
    assert receipt["precision"] == "int8" and receipt["limits"]["relative_rms"] is None
    assert receipt["calibration"] == {"images": 6, "from": f"{folder.name} train"}
    assert set(receipt["latency_ms"]) == {"size", "fp32", "int8"} and receipt["miou"]["int8"] is not None
    assert receipt["processors"]["compared_on"] == cpu_flags() and "AVX2" in receipt["processors"]["right_on"]
    assert receipt["verdict"] in (["slower than fp32 here"], ["faster than fp32 here"])
    assert receipt["verdict"][0] in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("net")) == [
        "net.onnx",
        "net.onnx.receipt.json",
    ]


def test_default_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.safetensors").touch()
    assert default_path("best.safetensors", "onnx").name == "best.onnx"
    assert default_path("best.safetensors", "openvino-int8").name == "best-int8.xml"
    assert default_path("mmseg/lraspp_m-v3-d8", "torch-export").name == "lraspp_m-v3-d8.pt2"


def test_images_are_spread_evenly(folder):
    assert pictures._spread(range(10), 3) == (0, 3, 6)
    assert pictures._spread(range(2), 3) == (0, 1)
    with pytest.raises(DataError, match="is a video"):
        (folder / "clip.mp4").touch()
        photographs(str(folder / "clip.mp4"))


def test_output_folders_that_cannot_be_made(weights, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        export(weights, "onnx", tmp_path / "file" / "net.onnx")
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        export(weights, "onnx", tmp_path / "taken.onnx")

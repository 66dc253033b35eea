"""Weight files of other projects become nets of ours, wholly or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import Classifier
from segmv3.errors import CheckpointError, Segmv3Warning
from segmv3.labels import Classes, cityscapes_classes
from segmv3.models.zoo import build, create_backbone, create_model
from segmv3.weights.formats import Format, Variant, formats
from segmv3.weights.importing import import_weights, their_names
from segmv3.weights.transfer import start_from, transfer

ALL = [(kind, variant) for kind in formats() for variant in kind.variants()]


def _cut_in_two(name: str, block: int = 13) -> str:
    """torchvision's names of a detector, whose backbone is cut behind the expansion of this block of Large."""
    first, *rest = name.split(".")
    if first != "features":
        return name if first == "head" else f"backbone.{name}"
    number = int(rest.pop(0))
    if number == block and rest[:2] != ["block", "0"]:
        return ".".join(["backbone.features.1.0", *rest[1:]])
    rest = rest[2:] if number == block else rest
    return ".".join(["backbone.features", *map(str, (0, number) if number <= block else (1, number - block)), *rest])


def their_tensors(kind: Format, variant: Variant, classes: int = 19) -> dict[str, torch.Tensor]:
    """What a project would store for a net: our own fresh tensors under its names, in its shapes."""
    model = build(variant.net, classes)
    tensors = dict(zip(their_names(kind, variant.net), model.state_dict().values(), strict=True))
    if kind.name in ("d-li14", "ShowLo"):
        tensors = {name: t[:, :, 0, 0] if ".fc." in name and t.ndim == 4 else t for name, t in tensors.items()}
    if kind.name == "timm" and "conv_head.weight" in tensors:
        tensors["conv_head.weight"] = tensors["conv_head.weight"][:, :, None, None]
    if kind.name == "ShowLo":
        tensors["last_stage_layers.1.weight"] = tensors["last_stage_layers.1.weight"][:, :, None, None]
    if kind.name == "PaddleClas":
        tensors["last_conv.weight"] = tensors["last_conv.weight"][:, :, None, None]
        tensors["fc.weight"] = tensors["fc.weight"].t()
    if kind.name == "torchvision SSDLite":
        tensors = {_cut_in_two(name): t for name, t in tensors.items()}
    if kind.name.startswith("Paddle"):
        tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    return tensors


@pytest.fixture
def mmseg(tmp_path) -> Path:
    """A small mmsegmentation checkpoint."""
    kind = formats()[0]
    tensors = their_tensors(kind, kind.variants()[1])
    path = tmp_path / "lraspp_m-v3s-d8.pth"
    torch.save({"meta": {"CLASSES": cityscapes_classes().names}, "state_dict": tensors}, path)
    return path


SOME = [each if i % 8 == 0 else pytest.param(*each, marks=pytest.mark.slow) for i, each in enumerate(ALL)]


@pytest.mark.parametrize(("kind", "variant"), SOME, ids=[variant.name for _, variant in ALL])
def test_every_variant_is_recognised(kind, variant, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(their_tensors(kind, variant), path)
    found = import_weights(path, variant=variant.name)
    assert (found.net, found.origin["variant"], len(found.names)) == (variant.net, variant.name, 19)
    assert found.model().state_dict().keys() == found.tensors.keys() and not found.unused


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("mobilenetv3_large_100.pth", "timm/mobilenetv3_large_100"),
        ("tf_mobilenetv3_large_100-427764d5.pth", "timm/tf_mobilenetv3_large_100"),
        ("427764d5-tf_mobilenetv3_large_100-427764d5.pth", "timm/tf_mobilenetv3_large_100"),
        ("mobilenetv3_large_100_1k_miil_78_0-66471c13.pth", "timm/mobilenetv3_large_100.miil"),
        ("tf_mobilenetv3_large_100.in1k/model.safetensors.pth", "timm/tf_mobilenetv3_large_100"),
    ],
)
def test_what_tensors_cannot_tell_the_file_name_tells(file, variant, tmp_path):
    kind = next(kind for kind in formats() if kind.name == "timm")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    torch.save(their_tensors(kind, kind.variants()[0]), path)
    found = import_weights(path)
    assert found.origin["variant"] == variant
    assert "--variant NAME chooses" in found.notes[0]


def test_prefixes_of_wrappers_are_taken_off(mmseg, tmp_path):
    plain = torch.load(mmseg, weights_only=True)["state_dict"]
    expected = import_weights(mmseg).tensors
    for name, stored in {
        "module": {f"module.{n}": t for n, t in plain.items()},
        "ema": {f"ema_{n}": t for n, t in plain.items()},
        "ema, as mmcv writes it": {f"ema_{n.replace('.', '_')}": t for n, t in plain.items()},
    }.items():
        torch.save({"state_dict": stored}, tmp_path / "wrapped.pth")
        found = import_weights(tmp_path / "wrapped.pth")
        assert all(torch.equal(found.tensors[n], t) for n, t in expected.items()), name
    both = plain | {f"ema_{n.replace('.', '_')}": t + 1 for n, t in plain.items()}
    torch.save({"state_dict": both}, tmp_path / "both.pth")
    found = import_weights(tmp_path / "both.pth")
    assert all(torch.equal(found.tensors[n], t) for n, t in expected.items())
    assert len(found.unused) == len(plain)


def test_class_names_come_along(tmp_path):
    kind = formats()[0]
    names = tuple(f"thing {i}" for i in range(5))
    state = {"state_dict": their_tensors(kind, kind.variants()[1], 5)}
    torch.save(state | {"meta": {"dataset_meta": {"classes": names}}}, tmp_path / "new.pth")
    assert import_weights(tmp_path / "new.pth").names == names
    torch.save(state, tmp_path / "none.pth")
    assert import_weights(tmp_path / "none.pth").names[:2] == ("class_0", "class_1")


def test_a_partial_file_is_refused(mmseg, tmp_path):
    state = torch.load(mmseg, weights_only=True)
    tensors, path = state["state_dict"], tmp_path / "part.pth"
    cases = {
        "1 of 265 tensors are missing or differ .first: decode_head.conv_seg.bias is missing": (
            {n: t for n, t in tensors.items() if n != "decode_head.conv_seg.bias"}
        ),
        "layer3.*is 72x1x3x7, expected 88": tensors
        | {"backbone.layer3.depthwise_conv.conv.weight": torch.ones(72, 1, 3, 7)},
        "1 tensor belongs to no such net, first auxiliary_head.weight": (
            tensors | {"auxiliary_head.weight": torch.ones(3)}
        ),
        r"no known format \(1 tensor, first strange\); known are mmsegmentation": {"strange": torch.ones(1)},
    }
    for says, stored in cases.items():
        torch.save({"state_dict": stored}, path)
        with pytest.raises(CheckpointError, match=says):
            import_weights(path)
    with pytest.raises(CheckpointError, match="is not timm/x; it fits mmseg/lraspp_m-v3s-d8"):
        import_weights(mmseg, variant="timm/x")


def test_a_backbone_alone_needs_a_net_to_go_into(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = {n: t for n, t in _timm_large().items() if not n.startswith(("conv_head", "classifier"))}
    torch.save(tensors, "backbone.pth")
    assert main(["weights", "import", "backbone.pth"]) == 2
    assert "backbone.pth holds a backbone only; segmv3 weights import with --into NET" in capsys.readouterr().err
    assert main(["weights", "import", "backbone.pth", "--into", "lraspp_large_d8"]) == 0
    says = capsys.readouterr().out
    # the full tail does not fit the halved one: blocks 12 to 14 and the closing convolution stay new
    assert "236 tensors loaded, 84 new, 72 unused; new: backbone.blocks.12 (22), backbone.blocks.13 (22)" in says
    assert "unused: backbone.blocks.12 (22)" in says and "hidden" not in says
    model, card = checkpoint.load("backbone.safetensors")
    assert model.num_classes == 19 and card.facts["origin"]["format"] == "timm"
    assert torch.equal(model.backbone.stem[0].weight, tensors["conv_stem.weight"])


def _timm_large() -> dict[str, torch.Tensor]:
    kind = next(kind for kind in formats() if kind.name == "timm")
    return their_tensors(kind, kind.variants()[0], 1000)


def test_import_writes_one_file_with_its_origin(mmseg, tmp_path, capsys):
    output = tmp_path / "ours.safetensors"
    assert main(["weights", "import", str(mmseg), "-o", str(output)]) == 0
    says = capsys.readouterr().out
    assert "mmseg/lraspp_m-v3s-d8: 265 tensors loaded, 0 new, 0 unused" in says
    assert "lraspp_small_d8_mmseg, 19 classes, 1,140,787 parameters" in says
    assert "non-commercial" in says
    _, card = checkpoint.load(output)
    assert card.classes == cityscapes_classes()
    origin = card.facts["origin"]
    assert origin["file"] == mmseg.name and len(origin["sha256"]) == 64 and "non-commercial" in origin["licence"]
    assert main(["weights", "import", str(mmseg), "-o", str(output)]) == 2
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    # and ours is a source like any other
    assert main(["weights", "import", str(output), "-o", str(tmp_path / "again.safetensors")]) == 0
    assert "segmv3: 265 tensors loaded" in capsys.readouterr().out


def test_other_class_counts_offer_a_new_head(mmseg, tmp_path, capsys):
    into = ["weights", "import", str(mmseg), "--into", "lraspp_small_d8_mmseg", "--num-classes", "11"]
    output = ["-o", str(tmp_path / "w.safetensors")]
    assert main([*into, *output]) == 2
    assert "has 19 classes, the net 11; --new-head" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()
    assert main([*into, *output, "--new-head"]) == 0
    assert "263 tensors loaded, 2 new, 2 unused; new: head.classifier (2)" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "w.safetensors")[0].num_classes == 11


def test_another_net_is_refused(mmseg):
    found = import_weights(mmseg)
    with pytest.raises(CheckpointError, match="MobileNetV3-small of width 1, wanted is MobileNetV3-large of width 1"):
        transfer(found, create_model("lraspp_large_d8"))
    with pytest.raises(CheckpointError, match="wanted is MobileNetV3-small of width 0.75"):
        transfer(found, create_backbone("small", width=0.75, num_classes=10))


def test_bn_of_a_new_convolution_is_new(mmseg):
    """Statistics gathered behind one convolution mean nothing behind another, though their shapes agree."""
    model = create_model("lraspp_small_d8")
    fit = transfer(import_weights(mmseg), model)
    assert "head.gated.deep.1.running_mean" in fit.new and "backbone.blocks.0.depthwise.1.running_mean" in fit.loaded
    assert len(fit.loaded) + len(fit.new) == len(model.state_dict())


def test_start_from_says_what_differs(tmp_path):
    torch.save(_timm_large(), tmp_path / "tf_mobilenetv3_large_100.pth")
    model, said = create_model("lraspp_large_d8", 4), []
    start_from(model, str(tmp_path / "tf_mobilenetv3_large_100.pth"), said.append)
    assert "236 tensors loaded, 84 new, 76 unused; new: backbone.blocks.12 (22)" in said[0]
    assert "--model.backbone.padding same" in said[-1] and "--model.mean 127.5 127.5 127.5" in said[-1]
    assert torch.equal(model.backbone.stem[0].weight, _stem(tmp_path / "tf_mobilenetv3_large_100.pth"))


def _stem(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)["conv_stem.weight"]


def test_foreign_weights_predict_at_once(mmseg, tmp_path):
    import segmv3

    predict = segmv3.load(mmseg, backend="torch")
    assert predict.classes == cityscapes_classes()
    assert predict(np.zeros((33, 65, 3), np.uint8)).shape == (33, 65)
    torch.save(_timm_large(), tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match="is a classifier"):
        segmv3.load(tmp_path / "timm.pth")


def test_a_classifier_is_kept_with_its_names(tmp_path):
    net = create_backbone("small", num_classes=3).eval()
    checkpoint.save(net, tmp_path / "c.safetensors", classes=("cat", "dog", "tram"))
    model, card = checkpoint.load_net(tmp_path / "c.safetensors", Classifier)
    assert card.names == ("cat", "dog", "tram") and isinstance(model.config, Classifier)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(image), net(image))
    with pytest.raises(CheckpointError, match="is a classifier: use it with segmv3 classify"):
        checkpoint.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bn1.running_mean", lambda t: t * float("nan"), "bn1.running_mean is not finite"),
        ("conv_stem.weight", lambda t: t.to(torch.int8), "conv_stem.weight is int8, not floating point"),
        ("bn1.running_var", lambda t: t - 2, "bn1.running_var holds negative variances"),
        ("classifier.weight", lambda t: t[0, 0], "classifier.weight is , expected 1x1280"),
    ],
)
def test_values_that_no_training_leaves_are_refused(name, change, says, tmp_path):
    tensors = _timm_large()
    torch.save(tensors | {name: change(tensors[name])}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=says):
        import_weights(tmp_path / "w.pth")


def test_words_of_a_file_name_are_whole_words(tmp_path):
    for file, variant in {
        "camera4.pth": "timm/mobilenetv3_large_100",
        "my_tf_port.pth": "timm/tf_mobilenetv3_large_100",
        "mobilenetv3_large_100.ra4_e3600.pth": "timm/mobilenetv3_large_100.ra4",
    }.items():
        torch.save(_timm_large(), tmp_path / file)
        assert import_weights(tmp_path / file).origin["variant"] == variant


def test_what_was_assumed_is_said_wherever_weights_are_opened(tmp_path):
    from segmv3.weights.opening import open_classifier

    torch.save(_timm_large(), tmp_path / "w.pth")
    with pytest.warns(Segmv3Warning, match="taken for timm/mobilenetv3_large_100; .*tf_mobilenetv3_large_100"):
        open_classifier(tmp_path / "w.pth")


@pytest.mark.slow
def test_a_net_with_untrained_layers_says_so(mmseg, tmp_path):
    import segmv3

    output = tmp_path / "start.safetensors"
    assert main(["weights", "import", str(mmseg), "--into", "lraspp_small_d8", "-o", str(output)]) == 0
    with pytest.warns(Segmv3Warning, match=r"start for training: .*head.deep_classifier \(2\).* was never trained"):
        segmv3.load(output)


@pytest.mark.parametrize("into", [[], ["--into", "lraspp_small_d8"]])
def test_weights_of_our_own_keep_their_colours(into, tmp_path):
    own, output = tmp_path / "own.safetensors", tmp_path / "new.safetensors"
    classes = Classes(("road", "sky"), ((1, 2, 3), (250, 251, 252)))
    checkpoint.save(create_model("lraspp_small_d8", 2), own, classes=classes)
    assert main(["weights", "import", str(own), "-o", str(output), *into]) == 0
    assert checkpoint.load(output)[1].classes == classes


def test_the_source_is_never_replaced(mmseg, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["weights", "import", str(mmseg), "-o", "ours.safetensors"]) == 0
    before = Path("ours.safetensors").read_bytes()
    assert main(["weights", "import", "ours.safetensors", "--overwrite"]) == 2
    assert "ours.safetensors is the source itself" in capsys.readouterr().err
    assert Path("ours.safetensors").read_bytes() == before
    assert main(["weights", "import", "ours.safetensors", "-o", "x.safetensors", "--variant", "timm/x"]) == 2
    assert "--variant is for other projects' files" in capsys.readouterr().err


def test_one_word_in_front_of_all_names_is_taken_off(mmseg, tmp_path):
    torch.save({f"model.{name}": t for name, t in _timm_large().items()}, tmp_path / "lightning.pth")
    assert import_weights(tmp_path / "lightning.pth").origin["variant"] == "timm/mobilenetv3_large_100"
    state = torch.load(mmseg, weights_only=True)["state_dict"]
    backbone = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    found = import_weights(tmp_path / "backbone.pth")
    assert found.backbone_only and found.origin["variant"] == "mmseg/lraspp_m-v3s-d8"
    without = {n: t for n, t in _timm_large().items() if not n.startswith("classifier")}
    torch.save(without, tmp_path / "features.pth")  # as timm saves with num_classes=0
    assert import_weights(tmp_path / "features.pth").unused == ("conv_head.weight", "conv_head.bias")


def test_a_backbone_by_other_rules_is_refused(tmp_path):
    import torchvision

    torch.save(torchvision.models.mobilenet_v3_large(width_mult=0.35).state_dict(), tmp_path / "narrow.pth")
    narrow = import_weights(tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="most of its backbone does not fit"):
        transfer(narrow, create_backbone("large", width=0.35, num_classes=1000))


def test_a_whole_net_is_not_taken_for_the_backbone_of_another(tmp_path):
    kind = next(each for each in formats() if each.name == "PaddleSeg")
    for variant in kind.variants():
        path = tmp_path / "net.pdparams"
        torch.save(their_tensors(kind, variant), path)
        notes = " ".join(import_weights(path).notes)  # the variants of LR-ASPP do look the same
        assert ("mobileseg" in variant.name) != ("would look the same" in notes)

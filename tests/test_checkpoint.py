import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import segmv3
from segmv3 import checkpoint
from segmv3.config import LRASPP, MobileNetV3, Model
from segmv3.errors import CheckpointError, NumericsError, OutputError, Segmv3Warning
from segmv3.labels import cityscapes_classes, numbered_classes
from segmv3.models.zoo import NETS, create_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model(Model(backbone=MobileNetV3(size="small"), head=LRASPP(pool="window")), 19).eval()


def test_a_weight_file_restores_the_net_and_its_card(model, tmp_path):
    path = tmp_path / "new folder" / "best.safetensors"
    segmv3.save(model, path, score={"miou": 12.5})
    restored, card = checkpoint.load(path)
    image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(restored(image), model(image))
    assert restored.config == model.config and not restored.training
    assert card.classes == cityscapes_classes() and card.facts["score"] == {"miou": 12.5}
    assert card.facts["version"] == segmv3.__version__ and len(card.sha256) == 64
    assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"]


def test_a_flipped_or_missing_byte_is_noticed_anywhere(model, tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(model, path)
    whole = path.read_bytes()
    for place in (0, 9, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            checkpoint.load(path)
    for length in (0, 5, 500, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            checkpoint.load(path)


def test_what_is_no_weight_file_is_refused(tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>" * 50)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, says in (
        ("page.safetensors", "cut short or no safetensors"),
        ("pickle.pth", "must be a .safetensors file written by segmv3"),
        ("foreign.safetensors", "names no net and no classes"),
        ("missing.safetensors", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=says):
            checkpoint.load(tmp_path / name)


def test_weights_that_are_not_finite_are_never_written(model, tmp_path):
    broken = create_model("lraspp_small_d8")
    broken.backbone.stem[1].running_var[3] = float("nan")
    with pytest.raises(NumericsError, match=r"backbone\.stem\.1\.running_var is not finite"):
        segmv3.save(broken, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        segmv3.save(model, tmp_path / "file" / "w.safetensors")


def test_another_net_or_other_classes_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 7), path)
    model, card = checkpoint.load(path)
    wanted = NETS["lraspp_small_d8"]
    checkpoint.check_net(card, model, wanted, numbered_classes(7), path)
    with pytest.raises(CheckpointError, match="7 classes stored, 19 requested"):
        checkpoint.check_net(card, model, wanted, cityscapes_classes(), path)
    with pytest.raises(CheckpointError, match=r"another net: backbone.size 'small' \(config: 'large'\)"):
        checkpoint.check_net(card, model, NETS["lraspp_large_d8"], numbered_classes(7), path)
    renamed = replace(numbered_classes(7), names=("car", *numbered_classes(7).names[1:]))
    with pytest.warns(Segmv3Warning, match="names no classes; its n-th is taken for the data's n-th .car first"):
        checkpoint.check_net(card, model, wanted, renamed, path)
    card = replace(card, names=("tram", *card.names[1:]))
    with pytest.raises(CheckpointError, match="'tram' where the data has 'car'"):
        checkpoint.check_net(card, model, wanted, renamed, path)


def state(step: int) -> dict:
    model = {"w": torch.full((3,), float(step))}
    return {"step": step, "seconds": 1.5, "evaluations": [], "origin": {}, "model": model, "optimizer": {}}


def test_only_the_newest_two_states_are_kept(tmp_path):
    for step in (4, 8, 12):
        checkpoint.save_state(tmp_path, step, state(step))
    assert checkpoint.saved_steps(tmp_path) == [12, 8]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json", ".pt", ".pt"]
    assert checkpoint.load_state(tmp_path)["step"] == 12


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(tmp_path):
    for step in (4, 8):
        checkpoint.save_state(tmp_path, step, state(step))
    newest = tmp_path / "step_00000008.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    said: list[str] = []
    assert checkpoint.load_state(tmp_path, said.append)["step"] == 4
    assert said == ["checkpoint: step_00000008.pt fails its checksum; resuming from step_00000004.pt"]
    (tmp_path / "step_00000004.json").write_text("{")
    with pytest.raises(CheckpointError, match="no training state"):
        checkpoint.load_state(tmp_path, said.append)


def test_a_state_without_a_manifest_does_not_exist(tmp_path):
    assert checkpoint.load_state(tmp_path) is None
    checkpoint.save_state(tmp_path, 4, state(4))
    (tmp_path / "step_00000004.json").unlink()
    assert checkpoint.load_state(tmp_path) is None


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save_state(tmp_path, 4, state(4))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segmv3.files.os.fsync", full)
    with pytest.raises(segmv3.errors.ResourceError, match=r"disk is full: .*step_00000008\.pt needs"):
        checkpoint.save_state(tmp_path, 8, state(8))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_differences_names_nested_settings():
    was = {"optim": {"lr": 1, "wd": 2}, "seed": 0}
    now = {"optim": {"lr": 3, "wd": 2}, "seed": 0, "new": json.loads("true")}
    assert checkpoint.differences(was, now) == {"optim.lr": (1, 3), "new": (None, True)}


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("backbone", "size"), "medium", "backbone.size cannot be 'medium'"),
        (("backbone", "output_stride"), 7, "backbone.output_stride cannot be 7"),
        (("backbone", "width"), 60.0, "backbone.width must lie between 0.1 and 4"),
        (("backbone", "bn_eps"), None, "backbone.bn_eps cannot be None"),
        (("head", "gate"), "exec", "head.gate cannot be 'exec'"),
        (("head", "channels"), 3_000_000, "head.channels must lie between 1 and 4096"),
        (("head", "pool_stride"), [0, 0], "head.pool-stride must be at least 1 x 1"),
        (("mean",), [1.0, 2.0], "mean cannot be"),
        (("std",), [0.0, 0.0, 0.0], "std must be above 0"),
        (("head", "channels"), 64, "does not hold the net it names: 8 tensors differ"),
        (("backbone", "size"), "large", "does not hold the net it names"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_built(place, value, says, tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 3), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["segmv3"])
    settings = ours["model"]
    for name in place[:-1]:
        settings = settings[name]
    settings[place[-1]] = value
    header["__metadata__"]["segmv3"] = json.dumps(ours)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["ro\u200bad", "ro\u00a0ad", "ro\tad", "\u202eroad"])
def test_names_that_could_not_be_read_again_are_not_saved(name, tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match="holds characters that cannot be seen"):
        checkpoint.save(create_model("lraspp_small_d8", 2), path, classes=("car", name))
    assert not path.exists()

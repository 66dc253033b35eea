"""Weights to and from a Hub that runs here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, serving
from huggingface_hub import constants

import segmv3
from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import Classifier, MobileNetV3
from segmv3.errors import CheckpointError, ResourceError
from segmv3.models.zoo import NETS, create_classifier, create_model
from segmv3.weights import hub as room
from segmv3.weights.opening import open_net, open_segmenter, open_weights

NAMES = ("road", "a|b", "<b>sky</b>", "x_y")
SCORE = {"dataset": "own", "split": "val", "images": 3, "scales": [1.0], "flip": False, "miou": 61.234}


def at_hub(url: str, monkeypatch) -> None:
    """What HF_ENDPOINT does before huggingface_hub is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that huggingface_hub takes for the real one, and a cache of its own."""
    with serving() as served:
        at_hub(served.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    net, file = create_model(NETS["lraspp_small_d8"], 4), folder / "best.safetensors"
    data = {"dataset": "cityscapes", "batch_size": 4, "crop_size": [360, 480]}
    start = {"name": "mmseg/lraspp", "licence": "Apache-2.0", "sha256": "ab" * 32}
    checkpoint.save(net, file, classes=NAMES, score=SCORE, step=4, config={"data": data}, pretrained=start)
    best = {"sha256": checkpoint.load(file)[1].sha256, "score": 61.234, "step": 4, "split": "val", "images": 3}
    splits = {"name": "streets", "train": {"images": 50}, "val": {"images": 3}}
    (folder / "manifest.json").write_text(json.dumps({"best": best, "data": splits, "machine": {"device": "a CPU"}}))
    return folder


def test_a_net_goes_up_and_comes_back_as_the_same_file(hub, run, tmp_path, capsys):
    assert main(["weights", "push", str(run), "me/net", "--licence", "apache-2.0"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"published {hub.url}/me/net/commit/") and not said.err
    there = hub.repositories["me/net"]["main"]
    assert set(there) == {"model.safetensors", "README.md", "manifest.json"}
    assert there["model.safetensors"] == (run / "best.safetensors").read_bytes()
    hub.asked.clear()

    net = segmv3.Segmenter.from_pretrained("me/net")
    assert not net.training and net.origin[1].names == NAMES and net.origin[1].facts["score"] == SCORE
    assert [method for method, *_ in hub.asked] == ["HEAD", "GET"]
    assert all("torch" not in agent and "agent/" not in agent for *_, agent in hub.asked), "nothing of the machine"
    assert open_segmenter("hub:me/net")[1].names == NAMES
    assert open_net("hub:me/net")[1] == net.origin[1], "with its colours and its score"
    assert open_weights(Path("hub:me/net@main")).origin["sha256"] == net.origin[1].sha256
    assert len([0 for method, *_ in hub.asked if method == "GET"]) == 1, "the cache has it"
    assert main(["weights", "import", "hub:me/net", "-o", str(tmp_path / "mine.safetensors")]) == 0


def test_the_card_tells_what_the_file_and_its_run_know(run, capsys):
    assert main(["weights", "push", str(run), "me/net", "--dry-run"]) == 0
    card, digest = capsys.readouterr().out, checkpoint.load(run / "best.safetensors")[1].sha256
    for line in (
        "library_name: segmv3",
        "segmv3 predict street.jpg --weights hub:me/net",
        "**61.23 % mIoU** on 3 images of the split val of own, at step 4 of its training.",
        f"SHA-256: `{digest}`",
        "| 1 | a\\|b |",
        "| 2 | &lt;b&gt;sky&lt;/b&gt; |",
        "| 3 | x\\_y |",
        "- data: streets, 50 images to train on, 3 to score",
        "- machine: a CPU",
        "| code of segmv3 | Apache-2.0 |",
        "| these weights | not stated by who published them |",
        "| data they were trained on | Cityscapes' licence: research, no commercial use",
        "| weights that training started from | Apache-2.0 |",
    ):
        assert line in card, line
    checkpoint.save(open_segmenter(run / "best.safetensors")[0], run / "best.safetensors", classes=NAMES)
    other = room.model_card(run / "best.safetensors", "me/net", licence="mit", data_licence="my *own*")
    assert "manifest" not in other and "The file names no score." in other and "license: mit" in other
    assert "| data they were trained on | my \\*own\\* |" in other and "started from" not in other
    (run / "manifest.json").write_text("[")
    assert room.model_card(run / "best.safetensors", "me/net") == room.model_card(run / "best.safetensors", "me/net")


def test_a_net_that_changed_has_no_score(hub, run):
    net = segmv3.Segmenter.from_pretrained(run)
    net.push_to_hub("me/same")
    assert hub.repositories["me/same"]["main"]["model.safetensors"] == (run / "best.safetensors").read_bytes()
    with torch.no_grad():
        next(net.parameters()).add_(1)
    net.push_to_hub("me/changed", private=True)
    there = segmv3.Segmenter.from_pretrained("me/changed")
    assert there.origin[1].names == NAMES and "score" not in there.origin[1].facts
    assert set(hub.repositories["me/changed"]["main"]) == {"model.safetensors", "README.md"}
    fresh = create_model(NETS["lraspp_small_d8"], 2)
    with pytest.raises(CheckpointError, match=r"this net has no class names: push_to_hub\(..., classes=\[...\]\)"):
        fresh.push_to_hub("me/fresh")
    fresh.push_to_hub("me/fresh", classes=["road", "sky"])
    assert segmv3.Segmenter.from_pretrained("me/fresh").origin[1].names == ("road", "sky")


def test_revisions_and_private_nets(hub, run, monkeypatch):
    first = room.push(run, "hub:me/net").rpartition("/")[2]
    second = hub.commit("me/net", {"README.md": b"edited"})
    assert first in str(room.pull(f"hub:me/net@{first}")) and second in str(room.pull("me/net", revision="main"))
    room.push(run, "me/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match=r"hub:me/secret: .* has no such net, or it is private and needs a token"):
        room.pull("me/secret")
    assert room.pull("me/secret", token=TOKEN).is_file()
    with pytest.raises(CheckpointError, match="hub:me/secret"):
        room.push(run, "me/secret")


def test_the_cache_serves_where_there_is_no_network(hub, run, monkeypatch):
    room.push(run, "me/net")
    found = room.pull("me/net")
    asked = len(hub.asked)
    assert room.pull("me/net", offline=True) == found and len(hub.asked) == asked
    monkeypatch.setenv("SEGMV3_OFFLINE", "1")
    assert room.pull("me/net") == found and len(hub.asked) == asked
    with pytest.raises(CheckpointError, match="hub:me/other is not in the cache, and the network is not to be used"):
        segmv3.load("hub:me/other")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hub:me/none", r"hub:me/none: http://127.0.0.1:\d+ has no such net, or it is private"),
        ("hub:me/net@v9", "hub:me/net has no revision v9"),
        ("hub:net", "hub:net is no name of a net on the Hub; such a name is USER/NAME"),
        ("hub:me/../net", "is no name of a net on the Hub"),
        ("hub:me/--", "is no name of a net on the Hub"),
        ("hub:me/text", "hub:me/text holds no model.safetensors: it is no net of segmv3"),
        ("hub:me/gated", "hub:me/gated is gated: ask for access at"),
        ("hub:me/other", "names no net and no classes"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, run, name, says, capsys):
    room.push(run, "me/net")
    hub.commit("me/text", {"README.md": b"text"})
    hub.commit("me/other", {"model.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
    hub.gated.add("me/gated")
    with pytest.raises(CheckpointError, match=says) as error:
        room.open_net(name)
    assert "\n" not in str(error.value)
    assert main(["predict", "mini-city.png", "--weights", name]) == 2


def test_other_bytes_than_the_hub_names_are_not_kept(hub, run):
    room.push(run, "me/net")
    hub.spoilt = True
    with pytest.raises(CheckpointError, match=r"the file is not the one that the Hub names \(digest\); fetch it again"):
        room.pull("me/net")
    hub.spoilt = False
    assert room.pull("me/net").is_file()


def test_no_network_is_one_line(hub, run, monkeypatch):
    at_hub("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
    with pytest.raises(
        CheckpointError, match="hub:me/net is not in the cache, and http://127.0.0.1:9 cannot be reached"
    ):
        room.pull("me/net")
    with pytest.raises(CheckpointError, match=r"hub:me/net: the Hub at http://127.0.0.1:9 does not do it \("):
        room.push(run, "me/net")


def test_what_is_no_net_of_ours_is_not_sent(hub, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    backbone = MobileNetV3(size="small", width=0.35)
    checkpoint.save(create_classifier(Classifier(backbone=backbone), 2), tmp_path / "c.safetensors", classes=["a", "b"])
    for name, says in (
        ("w.safetensors", "w.safetensors"),
        ("none", "does not exist"),
        ("c.safetensors", "a classifier"),
    ):
        with pytest.raises(CheckpointError, match=says):
            room.push(tmp_path / name, "me/net")
    assert not hub.asked


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResourceError, match=r'pip install "segmv3\[hub\]"'):
        room.pull("me/net")


@pytest.mark.slow
def test_commands_take_another_hub_from_the_environment(run, tmp_path):
    """As a user does it, in processes of their own."""
    with serving() as served:
        environment = os.environ | {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        environment["HF_HUB_DISABLE_XET"] = "1"
        segmv3.images.write_png(tmp_path / "street.png", torch.zeros(48, 64, 3, dtype=torch.uint8).numpy())
        for command in (
            ["weights", "push", str(run), "me/net"],
            ["predict", "street.png", "--weights", "hub:me/net", "--output", "out", "--backend", "torch"],
        ):
            whole = [sys.executable, "-m", "segmv3", *command]
            done = subprocess.run(whole, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0 and not done.stderr, done.stderr

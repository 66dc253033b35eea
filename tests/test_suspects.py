"""The list of labels that look wrong: one is made wrong by hand, and found."""

import csv

import numpy as np
import pytest
import torch

import segmv3
from segmv3.cli import main
from segmv3.config import Data
from segmv3.errors import OutputError
from segmv3.evaluation.counting import open_labelled
from segmv3.evaluation.run import Evaluation
from segmv3.evaluation.settings import Settings
from segmv3.images import read_ids, write_png
from segmv3.models.zoo import create_model

COLORS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3))).float()
"""Of the classes, as conftest.paint takes them."""


def by_color(image: torch.Tensor) -> torch.Tensor:
    """Labels of the nearest colour: a net that is right."""
    return torch.cdist(image[0].permute(1, 2, 0).float(), COLORS.expand(image.shape[2], 4, 3)).argmin(2)[None].byte()


@pytest.fixture
def wrong(folder, monkeypatch):
    """In one training label the class with the most pixels became another one."""

    def opened(data, weights, settings, device, trust):
        facts = {"weights": str(weights), "weights_sha256": "0", "device": "cpu", "precision": "fp32"}
        return Evaluation(open_labelled(data, settings.split), settings, by_color, device, "fp32", data.root, facts)

    monkeypatch.setattr("segmv3.evaluation.run.open_evaluation", opened)
    label = folder / "train" / "labels" / "scene_3.png"
    ids = read_ids(label)
    most = int(np.bincount(ids.ravel()).argmax())
    other = (most + 1) % 4
    ids[ids == most] = other
    ids[:, :2] = most  # the class is still there
    write_png(label, ids)
    return folder, most, other


def test_a_wrong_label_is_found_listed_and_shown(wrong, tmp_path, capsys):
    folder, right, given = wrong
    out = tmp_path / "out"
    assert main(["data", "suspects", str(folder), "--weights", "any", "-o", str(out)]) == 0
    names = ("road", "house", "tree", "sky")
    (row,) = csv.DictReader((out / "suspects.csv").open())
    assert (row["labelled"], row["predicted"]) == (names[given], names[right])
    assert row["label"] == str(folder / "train" / "labels" / "scene_3.png")
    assert (out / "suspects.txt").read_text() == f"{folder / 'train' / 'images' / 'scene_3.png'}\n"
    page = (out / "suspects.html").read_text()
    assert "scene_3" in page and f"labelled {names[given]}, predicted {names[right]}" in page
    assert capsys.readouterr().out.startswith(f"{out}: 1 label in doubt in 1 image of train\n")
    with pytest.raises(OutputError, match=r"suspects\.txt exists"):
        segmv3.find_suspects(Data(dataset="folder", root=folder), "any", output=out)


def test_right_labels_give_an_empty_list(wrong, tmp_path):
    folder, _, _ = wrong
    assert segmv3.find_suspects(Data(dataset="folder", root=folder), "any", split="val", output=tmp_path / "out") == []
    assert (tmp_path / "out" / "suspects.txt").read_text() == ""
    assert "None: nowhere does the net" in (tmp_path / "out" / "suspects.html").read_text()


def test_what_cannot_be_is_one_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    segmv3.save(create_model("lraspp_small_d8", 3), "three.safetensors")
    for flags, line in (
        (["nothing"], "data: nothing does not exist"),
        ([str(folder), "--count", "0"], "config: --count is 0; it must be at least 1"),
        ([str(folder), "-o", str(folder / "classes.json")], f"output: {folder / 'classes.json'} is a file"),
        ([str(folder), "--split", "test"], "data: found 0 images"),
        ([str(folder)], "checkpoint: three.safetensors: 3 classes stored, 4 requested"),
    ):
        assert main(["data", "suspects", "--weights", "three.safetensors", "-o", "out", *flags]) == 2
        said = capsys.readouterr().err
        assert said.startswith(line) and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()
    assert Settings().split == "val"

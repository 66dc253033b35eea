"""Weights for the same classes in another order, for partly the same and for other ones: rows go by name."""

from dataclasses import replace

import pytest
import torch

import segmv3
from segmv3 import checkpoint
from segmv3.errors import Segmv3Warning
from segmv3.labels import numbered_classes
from segmv3.models.zoo import create_model
from segmv3.weights.transfer import start_from

IMAGE = torch.arange(64 * 64 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(1, 3, 64, 64)
OLD = ("road", "car", "sky", "tree")


@pytest.fixture(params=["lraspp_small_d8", "lraspp_small_d8_mmseg", "paper_05_large_raspp", "lraspp_small_plus"])
def weights(request, tmp_path):
    torch.manual_seed(0)
    net = create_model(request.param, 4).eval()
    segmv3.save(net, tmp_path / "w.safetensors", classes=OLD)
    return net, tmp_path / "w.safetensors"


def logits(net):
    with torch.inference_mode():
        return net.eval()(IMAGE)[0]


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (("sky", "tree", "road", "car"), "all 4 classes are copied by their names"),
        (("sky", "bus", "road"), "classes copied by their names: sky, road; new: bus"),
        (("a", "b", "c", "d"), "none of its classes is one of the data ('road' where the data has 'a'): all new"),
        (("sky", "road", "bus", "car", "tree"), "classes copied by their names: sky, road, car, tree; new: bus"),
    ],
)
def test_a_start_copies_rows_by_name(weights, new, says):
    net, path = weights
    torch.manual_seed(1)
    started, said = create_model(net.config, len(new)), []
    fresh = logits(started)
    start_from(started, str(path), said.append, new)
    assert any(line.endswith(says) for line in said)
    found, was = logits(started), logits(net)
    for index, name in enumerate(new):
        if name in OLD:
            assert torch.allclose(found[index], was[OLD.index(name)], atol=1e-5)
        else:
            assert not any(torch.equal(found[index], row) for row in was) and not torch.equal(found, fresh)


def test_files_without_names_go_by_number(tmp_path):
    net = create_model("lraspp_small_d8", 4)
    segmv3.save(net, tmp_path / "w.safetensors")
    started, said = create_model("lraspp_small_d8", 4), []
    start_from(started, str(tmp_path / "w.safetensors"), said.append, OLD)
    assert torch.equal(logits(started), logits(net))
    assert "names no classes; its n-th is taken for the data's n-th (road first)" in said[1]


def test_scoring_takes_another_order_by_name(weights):
    net, path = weights
    was = logits(net)
    model, card = checkpoint.load(path)
    classes = replace(numbered_classes(4), names=("sky", "tree", "road", "car"))
    with pytest.warns(Segmv3Warning, match="the same classes in another order; they are taken by their names"):
        card = checkpoint.in_order(card, model, classes, path)
    checkpoint.check_net(card, model, net.config, classes, path)
    assert torch.equal(logits(model), was[[2, 3, 0, 1]])

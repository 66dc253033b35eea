"""A plain state_dict of our own nets, in every wrapping that trainers save it in."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file

import segmv3
from segmv3.errors import CheckpointError
from segmv3.models.zoo import create_model
from segmv3.weights.importing import import_weights
from segmv3.weights.opening import open_segmenter

torch.manual_seed(0)
STATE = create_model("lraspp_small_d8", 5).state_dict()
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def under(prefix, tensors=None):
    return {prefix + name: tensor for name, tensor in (tensors or STATE).items()}


CASES = {
    "plain": (STATE, "would look the same"),
    "ddp": (under("module."), "names of wrappers"),
    "compiled": (under("_orig_mod.module."), "names of wrappers"),
    "compiled inside": ({n.replace("head.", "head._orig_mod."): t for n, t in STATE.items()}, "names of wrappers"),
    "deep": (under("module._orig_mod.model.net."), "the prefix model.net. taken off"),
    "lightning": (
        {"state_dict": under("model."), "optimizer_states": {"0": {"exp_avg": torch.zeros(3)}}, "epoch": 3},
        "left out beside the weights: optimizer_states",
    ),
    "loss": (under("net.") | {"criterion.weight": torch.ones(5)}, "left out, first criterion.weight"),
    "loss beside plain": (STATE | {"loss_fn.weight": torch.ones(5)}, "left out, first loss_fn.weight"),
    "nested": ({"checkpoint": {"model_state_dict": under("module.")}}, "names of wrappers"),
    "with average": ({"model": STATE, "model_ema": under("module.", OTHER)}, "model_ema of the same file left alone"),
    "average inside": (under("model.") | under("ema_model.", OTHER), "averaged weights|left out"),
    "average alone": ({"ema": under("module."), "epoch": 1}, "names of wrappers"),
    "torch's average": (under("module.") | {"n_averaged": torch.tensor(4)}, "left out, first n_averaged"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrappings_are_taken_off_and_said(name, tmp_path):
    content, note = CASES[name]
    torch.save(content, tmp_path / "w.pth")
    found = import_weights(tmp_path / "w.pth")
    assert found.origin["variant"] == "segmv3/lraspp_small_d8" and found.names == tuple(f"class_{i}" for i in range(5))
    assert found.tensors.keys() == STATE.keys() and all(torch.equal(found.tensors[n], t) for n, t in STATE.items())
    assert name == "plain" or any(part in " ".join(found.notes) for part in note.split("|"))


def test_safetensors_without_our_header_and_parts(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert import_weights(tmp_path / "w.safetensors").tensors.keys() == STATE.keys()
    bare = {n.removeprefix("backbone."): t for n, t in STATE.items() if n.startswith("backbone.")}
    torch.save(bare, tmp_path / "b.pth")
    assert import_weights(tmp_path / "b.pth").backbone_only


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (under("a.") | under("b."), r"holds several nets, under a\., b\."),
        (STATE | {"head.extra.weight": torch.ones(3)}, "belongs to no such net, first head.extra.weight"),
        ({n: t for i, (n, t) in enumerate(STATE.items()) if i != 3}, "1 of 252 tensors are missing"),
        (under("net.") | {"decoder.weight": torch.ones(3)}, "belongs to no such net, first decoder.weight"),
        (STATE | {"backbone.stem.0.weight": STATE["backbone.stem.0.weight"] * float("nan")}, "is not finite"),
    ],
)
def test_what_would_be_loaded_in_part_is_refused(content, says, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=says):
        import_weights(tmp_path / "w.pth")


def test_a_changed_header_of_ours_is_never_taken_for_a_file_without(tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 19), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    outer, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    inner = json.loads(outer["__metadata__"]["segmv3"])
    changes = {place: random.Random(0).sample(ODD, 4) for place in ("format", "model", "classes", "palette", "digest")}
    for place, new in [(place, value) for place, values in changes.items() for value in values]:
        outer["__metadata__"]["segmv3"] = json.dumps(inner | {place: new})
        for spaces in ((",", ":"), (", ", ": ")):
            header = json.dumps(outer, separators=spaces).encode()
            path.write_bytes(len(header).to_bytes(8, "little") + header + rest)
            with pytest.raises(CheckpointError, match=str(path)):
                open_segmenter(path)


ODD = (None, True, -1, 1.5, 10**30, float("nan"), "x", [], [[]], {}, {"a": [1]})

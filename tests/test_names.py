"""Published weights by name, from a mirror on this machine."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch

import segmv3
from segmv3.cli import main
from segmv3.errors import CheckpointError
from segmv3.weights import names
from segmv3.weights.download import fetch
from segmv3.weights.formats import formats
from segmv3.weights.importing import their_names
from segmv3.weights.names import find, published


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror that holds one file: small mmsegmentation weights in the place of the published ones."""
    kind = formats()[0]
    variant = kind.variants()[1]
    model = segmv3.create_model(variant.net)
    tensors = dict(zip(their_names(kind, variant.net), model.state_dict().values(), strict=True))
    entry = published()["mmseg/lraspp_m-v3s-d8"]
    folder = tmp_path / "mirror"
    folder.mkdir()
    file = folder / entry.url.rpartition("/")[2]
    torch.save({"state_dict": tensors}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(names, "published", lambda: {entry.name: replace(entry, sha256=digest[:8])})
    monkeypatch.setenv("SEGMV3_MIRROR", folder.as_uri())
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    return file


def test_a_name_is_fetched_checked_and_kept(mirror, tmp_path, capsys, monkeypatch):
    output = tmp_path / "w.safetensors"
    command = ["weights", "import", "mmseg/lraspp_m-v3s-d8", "-o", str(output)]
    assert main([*command, "--offline"]) == 2
    assert "mmseg/lraspp_m-v3s-d8 is not in the cache; run without --offline" in capsys.readouterr().err
    assert main(command) == 0
    assert "265 tensors loaded, 0 new, 0 unused" in capsys.readouterr().out
    mirror.unlink()
    monkeypatch.delenv("SEGMV3_MIRROR")
    assert main([*command, "--offline", "--overwrite"]) == 0
    predict = segmv3.load("mmseg/lraspp_m-v3s-d8", backend="torch")
    origin = predict.card.facts["origin"]
    assert origin["name"] == "mmseg/lraspp_m-v3s-d8" and "64.11" in origin["published"]
    assert "non-commercial" in origin["licence"]


def test_a_file_that_is_not_the_published_one_is_refused(mirror, capsys):
    mirror.write_bytes(mirror.read_bytes()[:-1] + b"x")
    assert main(["weights", "import", "mmseg/lraspp_m-v3s-d8"]) == 2
    assert re.search("is not the published file: SHA-256 [0-9a-f]{64}, expected [0-9a-f]{8}", capsys.readouterr().err)


def test_every_entry_can_be_told_genuine():
    for name, entry in published().items():
        assert name == entry.name and entry.url.startswith("https://")
        if not name.startswith(("paddleseg/", "paddleclas/")):  # these publish no digest
            assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256), name
            assert entry.sha256[:8] in entry.url, name
        assert entry.licence and entry.source and entry.accuracy
        assert ("non-commercial" in entry.licence) == name.startswith(("mmseg/", "fastseg/", "paddleseg/")), name
    ends = ("cfe8fb07", "9f29cd72", "61565b34", "03daeabb", "1cd25616", "9632d2a8", "55df8e1f", "86c972c3")
    assert {entry.sha256[:8] for entry in published().values()} >= set(ends)


def test_a_file_without_a_published_digest_is_kept_by_what_came_first(tmp_path, monkeypatch, capsys):
    entry = published()["paddleseg/lraspp_large_os8"]
    mirror = tmp_path / "lraspp_mobilenetv3_cityscapes_1024x512_80k.pdparams"
    assert entry.file == mirror.name
    mirror.write_bytes(b"weights")
    monkeypatch.setenv("SEGMV3_MIRROR", tmp_path.as_uri())
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    said = []
    path = fetch(entry, say=said.append)
    assert path.read_bytes() == b"weights" and hashlib.sha256(b"weights").hexdigest() in said[0]
    mirror.unlink()
    assert fetch(entry, say=said.append) == path and len(said) == 1
    path.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="is damaged in the cache"):
        fetch(entry, offline=True)
    assert len({one.file for one in published().values()}) == len(published())


def test_every_entry_is_of_a_net_that_can_be_imported():
    known = {variant.name for kind in formats() for variant in kind.variants()}
    for name in published():
        assert (
            name.removesuffix("_scratch").removesuffix("_v2").removesuffix("_in21k").removesuffix("_ssld") in known
        ), name


def test_unknown_names_get_near_ones():
    with pytest.raises(CheckpointError, match="did you mean mmseg/lraspp_m-v3-d8 or"):
        find("mmseg/lraspp_m-v3-d9")
    with pytest.raises(CheckpointError, match="neither a file nor a published name; segmv3 weights list shows them"):
        find("zzz")


def test_the_list_shows_all_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["weights", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in published())
    assert main(["weights", "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list(published())

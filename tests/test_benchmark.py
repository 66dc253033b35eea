"""`segmv3 benchmark`: the table of accuracy and cost, and the time of scoring."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import segmv3
from benchmarks import metrics
from benchmarks.table import ROWS, cells, lines, read_results, weights_of
from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.errors import DataError
from segmv3.inference import MULTI_SCALES
from segmv3.labels import IGNORE
from segmv3.models.count import describe_nets
from segmv3.results.result import Result
from segmv3.weights import names
from segmv3.weights.formats import formats
from segmv3.weights.importing import their_names
from segmv3.weights.names import published

NAME = "mmseg/lraspp_m-v3s-d8"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror that holds one of the four published files (with weights of our own), and lacks another."""
    kind = formats()[0]
    net = kind.variants()[1].net
    tensors = dict(zip(their_names(kind, net), segmv3.create_model(net).state_dict().values(), strict=True))
    entry = published()[NAME]
    absent = published()["mmseg/lraspp_m-v3-d8"]
    folder = tmp_path / "mirror"
    folder.mkdir()
    file = folder / entry.url.rpartition("/")[2]
    torch.save({"state_dict": tensors}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entries = {NAME: replace(entry, sha256=digest[:8]), absent.name: absent}
    monkeypatch.setattr(names, "published", lambda: entries)
    monkeypatch.setenv("SEGMV3_MIRROR", folder.as_uri())
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))


def write_result(path, *, weights=NAME, flip=False, images=500, **facts):
    """A result file of one labelled pixel an image, three of four right."""
    counts = [[[0, 0, 3], [0, 1, 1]]] + [[[0, 0, 3], [0, 1, 1]]] * (images - 1)
    matrix = np.zeros((2, 2), int)
    matrix[0] = 3 * images, images
    content = {
        "dataset": "Cityscapes",
        "split": "val",
        "images": images,
        "images_in_split": 500,
        "size": [1024, 2048],
        "scales": list(MULTI_SCALES) if flip else [1.0],
        "flip": flip,
        "classes": [{"name": "road"}, {"name": "sidewalk"}],
        "confusion_matrix": matrix.tolist(),
        "per_image": [{"name": f"frankfurt_{i}", "counts": count} for i, count in enumerate(counts)],
        "weights": weights,
        "device": "cpu",
    }
    path.write_text(json.dumps(content | facts))


def test_without_results_all_is_counted_and_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # in a pipe a table is as wide as its words
    output = tmp_path / "table.md"
    assert main(["benchmark", "table", "--results", str(tmp_path / "none"), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    for text in ("69.54", "70.89", "15.22", "62.74", "65.01", "3,284,547", "1,507,198", "468,830", "not measured"):
        assert text in shown and text in output.read_text(), text
    assert "no Cityscapes here, and no result file in" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines() if "GMACs" in line or "───" in line) <= 100
    assert main(["benchmark", "table", "--output", str(output)]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err


def test_result_files_fill_the_rows_of_their_weights(tmp_path):
    write_result(tmp_path / "a.json", fps=12.5, memory_gb=0.5, device="cuda")
    write_result(tmp_path / "b.json", flip=True, weights="x.pth", weights_sha256=published()[NAME].sha256 + "0" * 56)
    write_result(tmp_path / "own.json", weights="best.safetensors", config="configs/lraspp_small_d8.py")
    write_result(tmp_path / "few.json", weights="mmseg/lraspp_m-v3-d8", images=2)
    write_result(tmp_path / "other.json", weights="best.safetensors", config="mine.py")
    (tmp_path / "noise.json").write_text("{}")
    results = read_results(tmp_path)
    assert [line.partition(tmp_path.name)[2][1:6] for line in results.left_out] == ["noise", "other"]
    table = {(line.row.title, line.origin): line for line in lines(results, describe_nets(), {})}
    both = table["LRASPP M-V3s-D8", "imported"]
    assert cells(both)[8:] == ("37.50", "37.50", "0.50", "12.50", "cuda")  # 75 % of road, 0 % of sidewalk
    assert both.why == ""
    own = table["lraspp_small_d8", "own"]
    assert cells(own)[8:10] == ("37.50", "not measured") and own.why.startswith("ms+flip: no Cityscapes")
    few = table["LRASPP M-V3-D8", "imported"]
    assert few.single is None and "few.json is of 2 of 500 images of Cityscapes val" in few.why


def test_two_files_for_one_place_are_refused(tmp_path):
    write_result(tmp_path / "a.json")
    write_result(tmp_path / "b.json")
    with pytest.raises(DataError, match=r"a.json and .*b.json are of the same weights; keep one of them"):
        lines(read_results(tmp_path), describe_nets(), {})


def test_weights_with_an_origin_are_never_our_own():
    facts = {"config": "configs/lraspp_small_d8_mmseg.py", "weights": "converted.safetensors"}
    result = Result(dataset="Cityscapes", split="val", **facts)
    assert weights_of(result) == "lraspp_small_d8_mmseg"
    assert weights_of(replace(result, origin={"name": NAME})) == NAME


def test_every_row_names_published_weights_and_a_recipe():
    assert {row.published for row in ROWS if row.published} <= set(published())
    for row in ROWS:
        if row.theirs and row.published:
            numbers = f"mIoU {row.theirs.miou:.2f}, ms+flip {row.theirs.multi_scale_flip:.2f}"
            assert published()[row.published].accuracy == numbers


@pytest.mark.slow
def test_evaluate_writes_result_files_and_goes_on_after_a_failed_download(mirror, cityscapes, tmp_path, capsys):
    results, own = tmp_path / "results", tmp_path / "best.safetensors"
    checkpoint.save(segmv3.create_model("lraspp_small_d8"), own)
    command = ["benchmark", "table", "--evaluate", "--data.root", str(cityscapes), "--results", str(results)]
    command += ["--weights", str(own), "--limit", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in results.iterdir()) == [
        "lraspp_small_d8.json",
        "lraspp_small_d8_ms-flip.json",
        "mmseg_lraspp_m-v3s-d8.json",
        "mmseg_lraspp_m-v3s-d8_ms-flip.json",
    ]
    assert "mmseg_lraspp_m-v3s-d8.json is of 1 of 2 images of Cityscapes val" in shown
    assert "mmseg/lraspp_m-v3-d8" in shown and "cfe8fb07.pth" in shown  # the download that failed
    facts = json.loads((results / "mmseg_lraspp_m-v3s-d8.json").read_text())
    assert facts["weights"] == NAME and facts["origin"]["name"] == NAME and facts["fps"] > 0
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert main(command) == 0  # what is there is kept
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before
    capsys.readouterr()
    assert main([*command[:-1], "2"]) == 2
    assert "exists; choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do for benchmark alone"),
        (["tabel"], "no benchmark command 'tabel'"),
        (["table", "--evaluate"], "--evaluate needs --data.root DIR"),
        (["table", "--limit", "3"], "--limit belongs to --evaluate"),
        (["metrics", "--repeat", "0"], "--repeat is 0"),
        (["metrics", "--limit", "3"], "--limit belongs to --data.root"),
        (["metrics", "--data.root", "nowhere"], "nowhere"),
    ],
)
def test_wrong_commands_are_one_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_metrics_times_all_that_is_installed(cityscapes, capsys):
    command = ["benchmark", "metrics", "--size", "64", "128", "--repeat", "2", "--data.root", str(cityscapes)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "label maps of 64x128" in shown and "random labels" in shown and "street labels" in shown
    assert "segmv3 ConfusionMatrix" in shown and "mmsegmentation IoUMetric" in shown
    assert "2 images of Cityscapes val with cached predictions" in shown and "decoding takes" in shown


def test_an_implementation_that_counts_otherwise_is_refused():
    def half(maps):
        return metrics.Prepared(lambda: None, lambda: np.zeros(metrics.CLASSES, np.int64))

    wrong = metrics.Implementation("wrong", "numpy", "uint8", half)
    maps = metrics.random_maps((8, 16))
    assert (maps.truth == IGNORE).any()
    with pytest.raises(metrics.ScoringError, match="wrong counts 0 right pixels in the random map"):
        metrics.time_updates(maps, 1, implementations=[*metrics.IMPLEMENTATIONS[:3], wrong])


def test_a_broken_peer_does_not_stop_the_others():
    def broken(maps):
        raise AssertionError("MMCV==3 is used but incompatible")

    peer = metrics.Implementation("peer", "numpy", "uint8", broken)
    ours, other = metrics.time_updates(
        metrics.random_maps((8, 16)), 2, implementations=[metrics.IMPLEMENTATIONS[0], peer]
    )
    assert ours.times and len(ours.times.seconds) == 2
    assert other.times is None and other.version == "cannot be used (MMCV==3 is used but incompatible)"


def test_races_outside_a_clone_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("segmv3.commands.benchmark._CLONE", tmp_path)
    for name in ("peers", "training", "loader", "metrics", "decode", "paper"):
        assert main(["benchmark", name, "--help"]) == 2
        error = capsys.readouterr().err
        assert f"benchmark {name} is not in the installed package" in error and error.count("\n") == 1
        assert "git clone" in error and str(tmp_path) in error

"""`segmv3 benchmark latency`, `peers`, `throughput`, `decode` and `paper`: what they print and leave behind."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segmv3
from benchmarks import paper, peers, video
from segmv3.benchmark import timing
from segmv3.benchmark.nets import Place
from segmv3.benchmark.pictures import streets
from segmv3.cli import main
from segmv3.errors import ResourceError
from segmv3.images import read_image, write_png
from segmv3.labels import Classes
from segmv3.media.encoding import VideoWriter
from segmv3.models.zoo import PAPER_NETS, create_model

SIZE = ["--size", "64", "128"]
QUICK = ["--force", "--repeat", "1", "--threads", "1"]
ON_TORCH = ["--net", "lraspp_small_d8", "--backend", "torch", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def _narrow_and_impatient(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(timing, "refuse_busy", partial(timing.refuse_busy, seconds=0.02))


@pytest.fixture
def picture():
    return streets([(64, 128)])[64, 128]


def read(path):
    receipt = json.loads(path.read_text())
    assert receipt["machine"]["cpu"] and receipt["date"] and receipt["command"].startswith("segmv3 benchmark ")
    assert receipt["cores_used_by_others"]["of"] >= 1
    return receipt


def tables(shown):
    """The lines of all tables, which fit 100 columns."""
    lines = shown.splitlines()
    rules = [i for i, line in enumerate(lines) if "───" in line]
    assert rules and max(len(lines[i].rstrip()) for i in rules) <= 100
    return lines


def test_help_lists_all_commands(capsys):
    assert main(["benchmark", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("latency", "peers", "throughput", "video", "decode", "paper", "table", "metrics"):
        assert f"  {name} " in shown


@pytest.mark.parametrize("name", ["latency", "peers", "throughput", "decode", "paper"])
def test_a_loaded_machine_is_refused(name, monkeypatch, capsys):
    monkeypatch.setattr(timing.Others, "cores", lambda self: 99.5)
    assert main(["benchmark", name]) == 2
    error = capsys.readouterr().err
    assert "other programs use 99.5 of" in error and "--force" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latency", "--size", "0", "128"], "--size is 0 128"),
        (["latency", "--size", "64", "128", "64", "128"], "names a size twice"),
        (["latency", "--repeat", "0"], "--repeat is 0"),
        (["latency", "--net", "lraspp_huge_d8"], "there is no net 'lraspp_huge_d8'; did you mean"),
        (["latency", "--weights", "a.safetensors", "--net", "lraspp_small_d8"], "exclude each other"),
        (["latency", "--weights", "a.st", "--net", "lraspp_large_d8", "lraspp_small_d8"], "exclude each other"),
        (["throughput", "--weights", "a.safetensors", "--net", "lraspp_large_d8"], "exclude each other"),
        (["throughput", "--size", "1", "1"], "--size is 1 1; a video has even sides"),
        (["throughput", "--size", "64", "127"], "both must be even"),
        (["decode", "--device", "cuda"], "timed on the CPU only"),
        (["latency", "--weights", "nowhere.safetensors", *SIZE, "--force"], "nowhere.safetensors"),
        (["latency", "--output", "times.txt"], "a receipt is a file *.json"),
        (["latency", "--precision", "fp32", "fp32"], "--precision names one twice"),
        (["peers", "--size", "-1", "128"], "--size is -1 128"),
        (["peers", "--budget", "0"], "--budget is 0"),
        (["peers", "--threads", "0", "--force"], "--threads is 0"),
        (["throughput", "--batch", "1", "0"], "--batch is 1 0"),
        (["throughput", "--images", "0"], "--images is 0"),
        (["throughput", "--net", "tiny"], "there is no net 'tiny'"),
        (["throughput", *SIZE, "--precision", "int8", "--force"], "does not run in int8"),
        (["decode", "--size", "0", "0"], "--size is 0 0"),
        (["decode", "--classes", "0"], "--classes is 0"),
        (["paper", "--size", "63", "128"], "both must be even"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_nothing_is_overwritten(tmp_path, capsys):
    plot = tmp_path / "times.png"
    plot.write_text("mine")
    assert main(["benchmark", "latency", "--output", str(tmp_path / "times.json")]) == 2
    assert "times.png exists" in capsys.readouterr().err and plot.read_text() == "mine"


@pytest.mark.slow
def test_latency_tells_the_stages_apart(tmp_path, capsys):
    from segmv3.benchmark.latency import STAGES

    output = tmp_path / "receipts" / "times.json"
    sizes = ["--size", "64", "128", "32", "64"]
    command = ["benchmark", "latency", *sizes, *ON_TORCH, *QUICK, "--no-memory", "--output", str(output)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    tables(shown)
    assert "lraspp_small_d8" in shown and "32x64" in shown and "GFLOP/s of a matrix product" in shown
    rows = read(output)["rows"]
    assert [row["size"] for row in rows] == [[64, 128], [32, 64]]
    for row in rows:
        assert list(row["stages"]) == list(STAGES)
        assert all(stage["median_ms"] > 0 for stage in row["stages"].values())
        inner = sum(row["stages"][stage]["median_ms"] for stage in ("prepare", "net", "labels"))
        assert row["labelling"]["median_ms"] == pytest.approx(inner, abs=0.01)
        assert row["backend"] == "torch" and row["precision"] == "fp32" and row["threads"] == 1
        assert 0 <= row["overhead_percent"] < 100 and row["gflop"] > 0 and row["floor_ms"] > 0
    plot = read_image(output.with_suffix(".png"))
    assert plot.shape[1] > 1000 and plot.std() > 10


def test_files_of_one_name_are_told_apart():
    from segmv3.benchmark.latency import short_names

    assert short_names(["a/best.st", "runs/b/best.st", "b/c.st"]) == {
        "a/best.st": "a/best.st",
        "runs/b/best.st": "b/best.st",
        "b/c.st": "c.st",
    }
    assert list(short_names(["x/a/w", "y/a/w", "/x/a/w"]).values()) == ["x/a/w", "y/a/w", "/x/a/w"]
    assert short_names(["net", "net"]) == {"net": "net"}


@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize("kept", [True, False])
def test_what_was_timed_before_a_stop_is_kept(calls, kept, tmp_path, monkeypatch, capsys):
    from segmv3.benchmark import latency

    done = iter(range(calls + 2))  # the first two only warm up
    real = latency._stages

    def stages(*arguments):
        if next(done, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(latency, "_stages", stages)
    monkeypatch.setattr(timing, "_LONG", 0.0)
    output = tmp_path / "times.json"
    sizes = ["--size", "64", "128", "32", "64"]
    command = ["benchmark", "latency", *sizes, *ON_TORCH, "--force", "--repeat", "2", "--threads", "1", "--no-memory"]
    assert main([*command, *(["--output", str(output)] if kept else [])]) == 130
    shown = capsys.readouterr().out
    assert output.exists() == (kept and calls > 0) and ("stopped; " in shown) == (calls > 0)
    if output.exists():
        receipt = read(output)
        assert receipt["incomplete"] and "marked as incomplete" in shown and "rows" not in receipt
        assert [call["of"]["size"] for call in receipt["calls"]] == [[64, 128], [32, 64], [64, 128]]
        assert all(set(call["ms"]) == set(latency.STAGES) and call["during"] == "timing" for call in receipt["calls"])


def test_finished_rows_are_kept_when_the_next_fail(tmp_path, monkeypatch, capsys):
    from benchmarks import decode

    real, titles = decode.time_decoders, []

    def one(case, repeat, **options):
        titles.append(case.title)
        if len(titles) > 1:
            raise decode.DecodingError("other labels")
        return real(case, repeat, implementations=decode.IMPLEMENTATIONS[:1], **options)

    monkeypatch.setattr(decode, "time_decoders", one)
    output = tmp_path / "decode.json"
    assert main(["benchmark", "decode", *SIZE, *QUICK, "--output", str(output)]) == 4
    receipt = read(output)
    assert receipt["incomplete"] and receipt["calls"] == [] and [row["logits"] for row in receipt["rows"]] == titles[:1]


@pytest.mark.slow
def test_latency_of_trained_weights_on_a_picture(tmp_path, picture, capsys):
    weights, image = tmp_path / "net.safetensors", tmp_path / "street.png"
    segmv3.save(create_model("lraspp_small_d8", 4), weights)
    write_png(image, picture)
    output = tmp_path / "times.json"
    command = ["benchmark", "latency", "--weights", str(weights), "--backend", "torch", "--precision", "fp32"]
    assert main([*command, "--image", str(image), *SIZE, *QUICK, "--output", str(output)]) == 0
    [row] = read(output)["rows"]
    assert row["trained"] and row["net"] == str(weights)
    assert row["memory_mib"]["peak"] > row["memory_mib"]["before"] > 50
    assert "net.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("peer", [p for p in peers.PEERS if p is not peers.REAL_MMSEGMENTATION], ids=lambda p: p.name)
def test_peers_give_labels_of_the_size_of_the_image(peer, picture, tmp_path):
    label = peer.open(picture, Place("cpu", 1, tmp_path))
    labels = label(picture)
    peers.refuse_no_labels(peer.name, labels, (64, 128))
    assert len(np.unique(labels)) > 1
    assert (label(picture[:, ::-1].copy()) != labels).any()


def test_our_copy_of_mmsegmentations_net_is_the_net(picture, tmp_path):
    place = Place("cpu", 1, tmp_path)
    copy = next(peer for peer in peers.PEERS if "our copy" in peer.name).open(picture, place)
    ours = peers.open_fresh(segmv3.models.zoo.NETS["lraspp_large_d8_mmseg"], picture, "torch", "fp32", place)
    assert (copy(picture) == ours(picture)).mean() > 0.999


def few(place, weights=None):
    """Ours by torch, torchvision's, and two that cannot be used."""
    ours = [peer for peer in peers._implementations(place, weights) if peer.name.startswith("segmv3")][-1:]

    def broken(picture, place):
        raise AssertionError("MMCV==3 is used but incompatible")

    def absent(picture, place):
        raise ModuleNotFoundError("No module named 'mmseg'", name="mmseg")

    return (*ours, peers.PEERS[0], peers.Peer("broken", "numpy", broken), peers.Peer("absent", "numpy", absent))


def test_peers_are_set_beside_ours(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "_implementations", peers.implementations, raising=False)
    monkeypatch.setattr(peers, "implementations", few)
    output = tmp_path / "peers.json"
    assert main(["benchmark", "peers", *SIZE, *QUICK, "--no-memory", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    tables(shown)
    assert "64x128 image to label map" in shown and "times" in shown and "mmseg" in shown
    ours, torchvision, broken, absent = read(output)["rows"]
    assert ours["group"] == "ours" and ours["times_our_best"] == ours["times_our_fp32"] == 1
    ratio = torchvision["median_ms"] / ours["median_ms"]
    assert torchvision["times_our_fp32"] == pytest.approx(ratio, rel=0.02)
    assert broken["version"] == "cannot be used (MMCV==3 is used but incompatible)" and "median_ms" not in broken
    assert absent["version"] == "not installed (mmseg)"


def test_the_implementations_are_those_of_the_device(tmp_path):
    on_cpu = peers.implementations(Place("cpu", 1, tmp_path))
    assert {"openvino", "onnxruntime", "torch"} <= {peer.package for peer in on_cpu if peer.group == "ours"}
    assert len({peer.name for peer in on_cpu}) == len(on_cpu)
    on_gpu = peers.implementations(Place("cuda", 1, tmp_path), "best.safetensors")
    assert {peer.arithmetic for peer in on_gpu if peer.group == "ours"} == {"fp16", "bf16", "fp32"}
    assert {peer.package for peer in on_gpu if peer.group != "peer"} == {"torch"}


def test_a_peer_that_gives_something_else_is_refused(picture, tmp_path):
    wrong = peers.Peer("wrong", "numpy", lambda picture, place: lambda image: image)
    with pytest.raises(peers.LabelsError, match=r"wrong gave uint8 \(64, 128, 3\), not labels of 64x128"):
        peers.time_peers(picture, Place("cpu", 1, tmp_path), 1, peers=[wrong], memory=False)


def test_throughput_of_batches_folder_and_video(tmp_path, capsys):
    output = tmp_path / "rates.json"
    counts = ["--batch", "1", "2", "--images", "2", "--frames", "3"]
    command = ["benchmark", "throughput", *SIZE, *ON_TORCH, *QUICK, *counts, "--output", str(output)]
    assert main(command) == 0
    assert any("share" in line for line in tables(capsys.readouterr().out))
    [found] = read(output)["results"]
    rates = {rate["name"]: rate for rate in found["rates"]}
    expected = {
        "batch of 1": (1, None),
        "batch of 2": (2, "batch of 1"),
        "images in memory": (2, None),
        "folder, labels written": (2, "images in memory"),
        "folder, overlay written": (2, "images in memory"),
        "frames in memory": (3, None),
        "video, overlay written": (3, "frames in memory"),
    }
    assert {name: (rate["images"], rate.get("share_of")) for name, rate in rates.items()} == expected
    for rate in rates.values():
        assert rate["per_second"] == pytest.approx(1000 * rate["images"] / rate["median_ms"], rel=0.01)


def test_without_av_no_video_is_timed(tmp_path, monkeypatch, capsys):
    from segmv3.commands.benchmark import throughput

    monkeypatch.setattr(throughput, "find_spec", lambda name: None)
    assert main(["benchmark", "throughput", *SIZE, *ON_TORCH, *QUICK, "--batch", "1", "--images", "1"]) == 0
    shown = capsys.readouterr().out
    assert 'pip install "segmv3[video]"' in shown and "frames in memory" not in shown


def test_decode_is_timed(tmp_path, monkeypatch, capsys):
    from benchmarks import decode

    short = partial(decode.time_decoders, implementations=[decode.IMPLEMENTATIONS[i] for i in (0, 3)])
    monkeypatch.setattr(decode, "time_decoders", short)
    output = tmp_path / "decode.json"
    assert main(["benchmark", "decode", *SIZE, *QUICK, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    tables(shown)
    assert shown.startswith("device CPU") and "street logits, 19 x 8 x 16 to labels of 64x128" in shown
    rows = read(output)["rows"]
    assert [row["logits"] for row in rows] == ["street", "street", "random", "random"]
    assert read(output)["settings"]["device"] == "cpu" and "incomplete" not in read(output)
    assert rows[0]["times_ours"] == 1 and rows[1]["times_ours"] > 0


def test_the_papers_claims_stand_beside_ours(tmp_path, monkeypatch, capsys):
    some = {name: paper.TIMED[name] for name in (paper.LARGE, paper.SMALL, "small_os32", "paper_01_v2_raspp")}
    monkeypatch.setattr(paper, "time_nets", partial(paper.time_nets, nets=tuple(some)))
    output = tmp_path / "paper.json"
    assert main(["benchmark", "paper", *SIZE, *QUICK, "--backend", "torch", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    tables(shown)
    assert "V3-Large LR-ASPP against V2 R-ASPP" in shown and "p95" in shown
    receipt = read(output)
    rows = {row["net"]: row for row in receipt["rows"]}
    assert set(rows) == set(some)
    assert [size["size"] for size in rows[paper.LARGE]["sizes"]] == [[64, 128], [32, 64]]
    claims = {(claim["net"], claim["of"]): claim for claim in receipt["claims"]}
    assert set(claims) == {(paper.LARGE, "paper_01_v2_raspp"), ("small_os32", paper.SMALL), (paper.SMALL, paper.LARGE)}
    found = claims[paper.LARGE, "paper_01_v2_raspp"]
    assert found["paper"] == [round(2.47 / 3.90, 4), round(0.657 / 1.02, 4)]
    medians = [rows[net]["sizes"][0]["net"]["median_ms"] for net in (found["net"], found["of"])]
    assert found["here"][0] == pytest.approx(medians[0] / medians[1], rel=0.02)


def test_every_claim_is_of_nets_that_are_timed():
    assert set(paper.SECONDS) == set(paper.TIMED) >= set(PAPER_NETS)
    assert {net for claim in paper.CLAIMS for net in (claim.net, claim.of)} <= set(paper.TIMED)
    strides = [paper.TIMED[name].backbone.output_stride for name in (paper.LARGE, "large_os32", "small_os32")]
    assert strides == [16, 32, 32]


# --- videos ---

STUB = """
class YOLO:
    def __init__(self, name): assert name == "yolo26n-sem.yaml"
    def predict(self, clip, *, imgsz, save, **options):
        print("a word of its own")
        assert imgsz == (48, 64) and save
        return iter(range(6))
__version__ = "0.0"
"""


@pytest.mark.slow
def test_a_clip_is_timed_beside_another_project(tmp_path, monkeypatch):
    pytest.importorskip("av")

    class Black:
        classes = Classes(("road",), ((128, 64, 128),))

        def __call__(self, image):
            return np.zeros(image.shape[:2], np.uint8)

    with VideoWriter(tmp_path / "clip.webm", 15, (48, 64)) as clip:
        for _ in range(6):
            clip.write(np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "ultralytics.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    place = Place("cpu", 2, tmp_path)
    told, opened = [], []
    python = Path(sys.executable)

    def black(place: Place) -> Any:
        opened.append(place.threads)
        return Black()

    options = {"ultralytics": python, "progress": lambda *step: told.append(step)}
    rates = video.time_clip(tmp_path / "clip.webm", black, place, 2, **options)
    assert opened == [2, 1]
    assert [rate.name for rate in rates] == [
        "frames in memory",
        "frames in memory, 2 at a time",
        *(f"segmv3 predict, {name}" for name in ("webm", "mp4", "av1")),
        "ultralytics 0.0, yolo26n-sem, its own predict",
    ]
    assert all(rate.frames == 6 and len(rate.costs) == 2 and rate.milliseconds("wall") > 0 for rate in rates)
    assert len(told) == 12
    (tmp_path / "ultralytics.py").write_text("raise ImportError('broken')")
    with pytest.raises(ResourceError, match="the environment of --ultralytics cannot run its net"):
        video.time_clip(tmp_path / "clip.webm", black, place, 2, **options)

"""Which frames to label next: the ranking by hand, what is left out, and what is written."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import paint

import segmv3
from segmv3.cli import main
from segmv3.data.sources import data_in
from segmv3.errors import DataError, OutputError, Segmv3Warning
from segmv3.images import read_image, write_png
from segmv3.models.zoo import create_model
from segmv3.prediction.sources import find_source
from segmv3.selection.ranking import k_centre, look_at, most_unsure
from segmv3.selection.settings import Settings

NAMES = ("road", "house", "tree", "sky")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 4), path, classes=segmv3.Classes(NAMES, ((0, 0, 0),) * 4))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Eight different pictures."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for i in range(8):
        write_png(folder / f"frame_{i}.png", paint(100 + i, (48, 64), 4)[0])
    return folder


def names(chosen) -> list[str]:
    return [frame.name for frame in chosen.frames]


def test_k_centre_takes_what_is_farthest_from_all_centres():
    points = np.array([[0], [1], [2], [10], [9]], np.float32)
    assert k_centre(points, np.array([[0]], np.float32), 3) == [(3, 10.0, 0), (2, 2.0, 0), (1, 1.0, 0)]
    first, *others = k_centre(points, np.zeros((0, 1), np.float32), 3)
    assert first == (0, np.inf, -1) and others == [(3, 10.0, 0), (2, 2.0, 0)]
    assert [place for place, _, _ in k_centre(np.zeros((3, 1), np.float32), np.zeros((1, 1), np.float32), 9)] == [
        0,
        1,
        2,
    ]


def test_a_hard_spot_below_much_sky_counts():
    spot, haze = torch.zeros(48, 96), torch.full((48, 96), 0.3)
    spot[40:, :24] = 1  # 4 % of the picture
    assert most_unsure(spot, 0.04)[0] == pytest.approx(1) and most_unsure(haze, 0.04)[0] == pytest.approx(0.3)
    assert most_unsure(spot, 1)[0] == pytest.approx(spot.mean().item()) and spot.mean() < 0.3
    assert torch.equal(most_unsure(spot, 0.04)[1], spot > 0)


@pytest.mark.parametrize("measure", ["entropy", "margin"])
def test_uncertainty_is_0_for_a_sure_net_and_1_for_one_that_knows_nothing(measure):
    net, image = create_model("lraspp_small_d8", 4).eval(), paint(0, (48, 64), 4)[0]
    for module in (net.head.deep_classifier, net.head.low_classifier):
        torch.nn.init.zeros_(module.weight)
    bias = next(m.bias for m in (net.head.deep_classifier, net.head.low_classifier) if m.bias is not None)
    for logits, expected in (([0.0, 0, 0, 0], 1), ([0.0, 90, 0, 0], 0)):
        bias.data = torch.tensor(logits)
        look = look_at(net, image, Settings(measure=measure))
        assert look.value == pytest.approx(expected, abs=1e-6)
        assert look.unsure.shape == look.logits.shape[2:] and look.features.ndim == 1
    assert 1 in look.between


def test_the_most_unsure_are_the_candidates_and_the_choice_repeats(pool, weights):
    unsure = segmv3.select_frames(str(pool), weights, Settings(count=3, candidates=1))
    assert sorted(frame.rank for frame in unsure.frames) == [1, 2, 3] and unsure.frames[0].nearest == ""
    assert all(frame.nearest in names(unsure)[:place] for place, frame in enumerate(unsure.frames) if place)
    every = segmv3.select_frames(str(pool), weights, Settings(count=99))
    assert len(every.frames) == every.ranked == 8
    ranked = sorted(every.frames, key=lambda frame: frame.rank)
    assert [f.uncertainty for f in ranked] == sorted((f.uncertainty for f in ranked), reverse=True)
    assert segmv3.select_frames(str(pool), weights, Settings(count=3, candidates=1)) == unsure
    assert segmv3.select_frames(str(pool), weights, Settings(every=3)).ranked == 3


def test_labelled_frames_and_copies_are_left_out(folder, pool, weights):
    known = folder / "train" / "images" / "scene_0.png"
    cv2.imwrite(str(pool / "same_pixels.bmp"), cv2.imread(str(known)))
    (pool / "linked.png").symlink_to(folder / "val" / "images" / "scene_1.png")
    shutil.copy(pool / "frame_2.png", pool / "z.png")
    chosen = segmv3.select_frames(str(pool), weights, labelled=data_in(folder))
    assert chosen.left_out == {"labelled already": 2, "the same as another": 1}
    assert chosen.ranked == 8 and chosen.labelled == 9 and {"z", "linked", "same_pixels"}.isdisjoint(names(chosen))
    assert chosen.frames[0].nearest.startswith("scene_") and np.isfinite(chosen.frames[0].distance)
    with pytest.raises(DataError, match="nothing is left to choose from the pool: 6 frames are labelled already"):
        segmv3.select_frames(str(folder / "train" / "images"), weights, labelled=data_in(folder))


def test_a_damaged_picture_is_named_and_left_out(pool, weights):
    (pool / "broken.png").write_bytes(b"no picture")
    with pytest.warns(Segmv3Warning, match=r"broken\.png"):
        chosen = segmv3.select_frames(str(pool), weights)
    assert chosen.left_out == {"unreadable": 1} and chosen.ranked == 8


@pytest.mark.parametrize("save", ["list", "copies", "links"])
def test_the_list_names_files_that_predict_takes(save, pool, weights, tmp_path):
    out = tmp_path / "out"
    chosen = segmv3.select_frames(str(pool), weights, Settings(count=2, save=save), output=out)
    listed = find_source(str(out / "next.txt"))
    assert list(listed.names) == names(chosen) and chosen.files == (out / "next.txt", out / "next.html")
    for path, name in zip(listed.paths, listed.names, strict=True):
        assert path.parent == (pool if save == "list" else out / "images") and path.is_symlink() == (save == "links")
        assert (read_image(path) == read_image(pool / f"{name}.png")).all()
    page = (out / "next.html").read_text()
    assert page.count("<img ") == 6 and all(name in page for name in names(chosen))
    again = (
        r"next\.txt exists; choose another --output or add --overwrite" if save == "list" else "images exists; remove"
    )
    with pytest.raises(OutputError, match=again):
        segmv3.select_frames(str(pool), weights, Settings(count=2), output=out)
    if save == "list":
        before = (out / "next.txt").read_bytes(), (out / "next.html").read_bytes()
        segmv3.select_frames(str(pool), weights, Settings(count=2, overwrite=True), output=out)
        assert before == ((out / "next.txt").read_bytes(), (out / "next.html").read_bytes())


def test_frames_of_a_video_become_files(weights, tmp_path):
    pytest.importorskip("av")
    from segmv3.mini_city import write_mini_city

    write_mini_city(tmp_path / "city", size=(64, 128), video=8)
    out = tmp_path / "out"
    video = str(tmp_path / "city" / "drive.webm")
    chosen = segmv3.select_frames(video, weights, Settings(count=2, every=3), output=out)
    assert chosen.ranked == 3 and {frame.number for frame in chosen.frames} <= {0, 3, 6}
    listed = find_source(str(out / "next.txt"))
    assert list(listed.names) == [f"drive_{frame.number:06d}" for frame in chosen.frames]
    assert read_image(listed.paths[0]).shape == (64, 128, 3)


@pytest.mark.parametrize(
    ("source", "flags", "line"),
    [
        ("nothing", "", "data: nothing does not exist"),
        ("empty", "", "data: empty holds no images"),
        ("0", "", "data: 0 is neither a folder or list of images nor a video file; record it to a file first"),
        (
            "pool",
            "--weights net.onnx",
            "model: net.onnx is an exported file, which gives no features; name the weights",
        ),
        ("pool", "--weights other", "checkpoint: other is a folder of another library's net, which segmv3 predict,"),
        ("pool", "--weights run", "checkpoint: run is the folder of a run; name its weights, run/best.safetensors"),
        ("pool", "--weights empty", "checkpoint: empty is a folder; name a weight file"),
        ("pool", "--count 0", "config: --count is 0; it must be at least 1"),
        ("pool", "--worst 2", "config: --worst is 2; it is a share of the cells, above 0 and at most 1"),
        ("pool", "--size 0 8", "config: --size is 0 8; both are at least 1, and at most"),
        ("pool", "--labelled bare", "data: bare holds no frame with labels; leave --labelled out, or name another"),
        ("pool", "-o pool", "output: pool is the folder the images are read from"),
        ("pool", "-o pool/frame_0.png", "output: pool/frame_0.png is a file; name a folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    source, flags, line, pool, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "classes.json").write_text(
        json.dumps({"classes": [{"id": i, "name": n} for i, n in enumerate(NAMES)]})
    )
    for file in ("other/config.json", "run/config.json", "run/best.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "next", source, "--weights", str(weights), "-o", "out", *flags.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(line) and said.err.count("\n") == 1 and not said.out
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_says_what_it_chose(folder, pool, weights, tmp_path, capsys):
    shutil.copy(folder / "train" / "images" / "scene_0.png", pool)
    out = tmp_path / "out"
    flags = ["--weights", str(weights), "--count", "2", "--labelled", str(folder), "-o", str(out)]
    assert main(["data", "next", str(pool), *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "left out of the pool: 1 labelled already"
    assert said[1] == f"chose 2 of 8 frames, beside 9 labelled ones: {out / 'next.txt'} and {out / 'next.html'}"


def test_a_name_that_breaks_a_list_is_refused(pool, weights, tmp_path):
    (pool / "frame_0.png").rename(pool / "a\nb.png")
    with pytest.raises(DataError, match="cannot stand in a list"):
        segmv3.select_frames(str(pool), weights, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()

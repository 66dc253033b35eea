"""Adapting to new streets without labels: which labels are learned from, what is refused, what is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import locked_elsewhere, paint
from PIL import Image

import segmv3
from segmv3 import checkpoint
from segmv3.adaptation import pseudo, run
from segmv3.adaptation.settings import Adaptation
from segmv3.cli import main
from segmv3.config import Data
from segmv3.data.datasets import open_dataset, open_extra
from segmv3.errors import ConfigError, DataError, OutputError, Segmv3Warning
from segmv3.images import read_ids, read_image, write_png
from segmv3.media.encoding import VideoWriter
from segmv3.models.zoo import NETS, create_model
from segmv3.prediction.sources import VideoSource

SHORT = Adaptation(rounds=2, steps=2, batch_size=2, crop_size=(32, 32), scales=(1.0,))


@pytest.fixture
def weights(folder: Path, tmp_path: Path) -> Path:
    """A net of the folder's classes that was never trained."""
    torch.manual_seed(0)
    classes = open_dataset(Data(dataset="folder", root=folder), "train").classes
    path = tmp_path / "net.safetensors"
    checkpoint.save(create_model(NETS["lraspp_small_d8"], 4), path, classes=classes, origin={"licence": "MIT"})
    return path


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Five frames without labels, two of which share a name."""
    place = tmp_path / "new streets"
    for number, name in enumerate(("a/x", "b_labels/x", "y", "y_labels", "z")):
        file = place / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(file, paint(100 + number, (48, 64), 4)[0])
    return place


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training is left out: the net that it began with is what comes of it. The configs that it was asked for."""
    configs: list[Any] = []

    def train(config: Any, place: Path, **_: Any) -> Any:
        configs.append(config)
        dataset = open_dataset(config.data, "train")
        extra = open_extra(config.data, dataset)
        assert dataset.classes.names == ("road", "house", "tree", "sky")
        assert len(extra or dataset) == len(list((place.parents[1] / "images").rglob("*.png")))
        place.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(weights=Path(shutil.copy(config.model.pretrained, place / "best.safetensors")))

    monkeypatch.setattr(run, "train", train)
    return configs


def test_each_class_keeps_its_surest_share_and_all_that_is_sure():
    counts = np.zeros((3, 256), np.int64)
    counts[0, [100, 150, 200]] = 40, 30, 30  # the surest half: 200 and a part of 150
    counts[1, [240, 250]] = 50, 50  # all above 0.9 = 230
    assert pseudo.thresholds(counts, 0.5, 0.9).tolist()[:2] == [150, 230]
    assert pseudo.thresholds(counts, 0.3, 1.0).tolist()[:2] == [200, 250]
    assert pseudo.thresholds(counts, 1.0, 1.0).tolist()[:2] == [100, 240]


def test_a_label_is_kept_as_often_as_the_net_is_sure_of_it_and_never_below_the_bar(tmp_path: Path):
    images, folder = tmp_path / "images", tmp_path / "round-1"
    best = np.repeat([[0], [1], [2]], 100, 0).repeat(400, 1).astype(np.uint8)
    sure = np.repeat([[255], [51], [204]], 100, 0).repeat(400, 1).astype(np.uint8)
    sure[100:110] = 102  # of class 1: the surest tenth
    for place, pixels in ((images, best), (folder / "best", best), (folder / "confidence", sure)):
        place.mkdir(parents=True)
        write_png(place / "a.png", pixels if place != images else np.zeros((300, 400, 3), np.uint8))
    classes = run.checkpoint.numbered_classes(3)
    pseudo._keep_the_surest(folder, images, classes, Adaptation(portion=0.1, sure=0.9))
    kept = read_ids(folder / "labels" / "a_labels.png")
    assert json.loads((folder / "thresholds.json").read_text()) == {"class_0": 230, "class_1": 102, "class_2": 204}
    assert (kept[:100] == 0).all()
    assert set(np.unique(kept[100:110])) == {1, 255} and (kept[110:200] == 255).all()
    assert np.mean(kept[100:110] == 1) == pytest.approx(0.4, abs=0.03)
    assert np.mean(kept[200:] == 2) == pytest.approx(0.8, abs=0.01)


def test_it_writes_an_ordinary_weight_file_that_says_where_it_comes_from(
    weights: Path, frames: Path, folder: Path, tmp_path: Path, trained: list[Any]
):
    new, work = tmp_path / "new.safetensors", tmp_path / "work"
    told = segmv3.adapt(weights, frames, new, source=folder, run=work, settings=SHORT)
    card = checkpoint.load(new)[1]
    assert card.names == ("road", "house", "tree", "sky")
    assert card.facts["adapted_from"] == {
        "file": "net.safetensors",
        "sha256": checkpoint.read(weights).card.sha256,
        "origin": {"licence": "MIT"},
    }
    assert card.facts["adaptation"]["frames"] == told.frames == 5
    assert card.facts["adaptation"]["source"] == "data" and card.facts["adaptation"]["after"] == told.after
    assert set(told.before) == set(told.after) == {"source", "agreement", "flicker"}
    kept = sorted(path.relative_to(work / "images").as_posix() for path in (work / "images").rglob("*.png"))
    assert kept == ["a/x.png", "b_labels/x.png", "y.png", "y_labels.png", "z.png"]
    assert np.array_equal(read_image(work / "images" / "b_labels" / "x.png"), read_image(frames / "b_labels" / "x.png"))
    first, second = trained
    assert first.model.pretrained == str(weights) and first.seed != second.seed
    assert second.model.pretrained == str(work / "round-1" / "run" / "best.safetensors")
    assert second.data.extra_share == 0.5 and second.data.extra_labels == work / "round-2" / "labels"


def moved(old: Path, new: Path) -> Path:
    new.parent.mkdir(parents=True, exist_ok=True)
    return old.rename(new)


def test_image_files_are_read_where_they_lie_also_once_they_and_the_folder_were_moved(
    weights: Path, frames: Path, tmp_path: Path, trained: list[Any]
):
    photo = Image.new("RGB", (64, 48), "red")
    photo.save(frames / "z.jpg")  # beside z.png
    photo.save(frames / "photo.avif")  # which no data set reads
    work, new, once = tmp_path / "work", tmp_path / "new.safetensors", replace(SHORT, rounds=1)
    told = r"^frames: copied 1 of 7 into .*images \(0\.0 MB\)$"
    with pytest.warns(Segmv3Warning, match=told):
        segmv3.adapt(weights, frames, new, run=work, settings=once)
    links = {path.relative_to(work / "images").as_posix(): path for path in (work / "images").rglob("*.png")}
    assert links["z.jpg.png"].resolve() == frames / "z.jpg" and links["a/x.png"].resolve() == frames / "a" / "x.png"
    assert [name for name, path in links.items() if not path.is_symlink()] == ["photo.png"]
    assert np.array_equal(read_image(links["photo.png"]), read_image(frames / "photo.avif"))

    frames, work = moved(frames, tmp_path / "disk" / "streets"), moved(work, tmp_path / "far" / "work")
    with pytest.warns(Segmv3Warning, match=told):
        segmv3.adapt(weights, frames, new, run=work, settings=once)
    assert (work / "images" / "z.jpg.png").resolve() == frames / "z.jpg" and len(trained) == 2

    started = "work was started with other settings: "
    (frames / "z.jpg").write_bytes((frames / "z.jpg").read_bytes() + b"1")
    with pytest.raises(ConfigError, match=f'{started}SHA-256 of the frames "[^ ]+" -> "[^ ]+". Use another --run.$'):
        segmv3.adapt(weights, frames, new, run=work, settings=once)
    (frames / "z.jpg").rename(frames / "w.jpg")
    with pytest.raises(ConfigError, match=rf'{started}frames \["a/x", .* -> \["a/x", .* Use another --run.$'):
        segmv3.adapt(weights, frames, new, run=work, settings=once)


def test_frames_of_a_video_are_copied_and_must_stay(weights: Path, tmp_path: Path):
    images, folder = tmp_path / "images", tmp_path / "round-1"
    with VideoWriter(tmp_path / "drive.mp4", 5, (48, 64)) as writer:
        for number in range(3):
            writer.write(paint(100 + number, (48, 64), 4)[0])
    net, card = checkpoint.load(weights)
    video = VideoSource(tmp_path / "drive.mp4")
    with pytest.warns(Segmv3Warning, match=r"^frames: copied 3 of 3 into .*/images \(0\.0 MB\)$"):
        pseudo.label_frames(video, net.eval(), card.classes, folder, images, SHORT, lambda *_: None)
    (gone := images / "drive" / "000001.png").unlink()
    with pytest.raises(DataError) as caught:
        pseudo.link_frames(video, images, folder / "best")
    assert str(caught.value) == f"data: {gone} is gone, which was copied from a video; start again with another --run"


def test_where_links_cannot_be_made_frames_are_copied(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError(1, "a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    found = run._streets(str(frames), tmp_path / "work")[0]
    with pytest.warns(Segmv3Warning, match=r"^frames: copied 5 of 5 into "):
        pseudo.link_frames(found, tmp_path / "images", frames)  # labels of these names
    copy = tmp_path / "images" / "b_labels" / "x.png"
    assert not copy.is_symlink() and np.array_equal(read_image(copy), read_image(frames / "b_labels" / "x.png"))


@pytest.mark.slow
def test_a_stopped_adaptation_goes_on_also_elsewhere_and_ends_in_the_same_weights(
    weights: Path, frames: Path, tmp_path: Path
):
    whole = tmp_path / "whole.safetensors"
    segmv3.adapt(weights, frames, whole, run=tmp_path / "whole", settings=SHORT)

    def stop(what: str, done: int, total: int | None) -> None:
        if what.startswith("round-2") and done == 3:
            raise KeyboardInterrupt

    cut, output = tmp_path / "cut", tmp_path / "cut.safetensors"
    with pytest.raises(KeyboardInterrupt):
        segmv3.adapt(weights, frames, output, run=cut, settings=SHORT, progress=stop)
    assert not output.exists()
    cut, frames, weights = (moved(each, tmp_path / "far" / each.name) for each in (cut, frames, weights))
    segmv3.adapt(weights, frames, output, run=cut, settings=SHORT)
    mine, theirs, before = (checkpoint.read(path).tensors for path in (whole, output, weights))
    assert any(not torch.equal(mine[name], before[name]) for name in mine)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(ConfigError, match=r"other settings: rounds 2 -> 1"):
        segmv3.adapt(weights, frames, output, run=cut, settings=replace(SHORT, rounds=1))


def test_a_frame_that_cannot_be_read_is_left_out_with_a_line(
    weights: Path, frames: Path, tmp_path: Path, trained: list[Any]
):
    whole = (frames / "z.png").read_bytes()
    (frames / "z.png").write_bytes(whole[: len(whole) // 2])
    (frames / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(Segmv3Warning, match=r"2 of 6 images could not be read \(first: .*gone.png"):
        told = segmv3.adapt(weights, frames, tmp_path / "new.safetensors", run=tmp_path / "work", settings=SHORT)
    assert told.frames == 4 and len(trained) == 2


def test_a_folder_that_holds_something_else_or_that_another_process_works_in_is_refused(
    weights: Path, frames: Path, folder: Path, tmp_path: Path, trained: list[Any]
):
    new, work = tmp_path / "new.safetensors", tmp_path / "work"
    with pytest.raises(OutputError, match="data is not empty and holds no adaptation; choose another --run"):
        segmv3.adapt(weights, frames, new, run=folder, settings=SHORT)
    segmv3.adapt(weights, frames, new, run=work, settings=SHORT)
    with (
        locked_elsewhere(work / "adaptation.lock"),
        pytest.raises(
            OutputError, match="another process adapts a net in .*work; wait for it, stop it, or use another"
        ),
    ):
        segmv3.adapt(weights, frames, new, run=work, settings=SHORT)


def test_what_got_worse_is_not_written(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    trained: list[Any],
):  # fmt: skip
    scores = iter([50.0, 49.99])
    monkeypatch.setattr(run, "evaluate", lambda *_, **__: type("Scored", (), {"miou": next(scores)}))
    new, work = tmp_path / "new.safetensors", tmp_path / "work"
    flags = ["--rounds", "1", "--steps", "2", "--batch-size", "2", "--scales", "1", "--crop-size", "32", "32"]
    assert main(["adapt", str(weights), str(folder), "-o", str(new), "--run", str(work), *flags]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    kept = work / "round-1" / "run" / "best.safetensors"
    why = f"output: {new} is not written: on the labelled part it has 49.99 % mIoU, 50.00 before"
    assert said == f"{why}; the weights lie in {kept}"
    assert not new.exists() and checkpoint.load(kept)
    assert trained[0].data.extra_images is None and trained[0].data.crop_size == (32, 32)


def test_a_data_set_gives_its_train_images_and_is_scored_on_val(folder: Path, tmp_path: Path):
    found, data = run._streets(str(folder), tmp_path)
    assert [path.parent for path in found.paths] == [folder / "train" / "images"] * 6
    assert data is not None and data.root == folder
    for file in (folder / "train" / "images").iterdir():
        file.unlink()
    found, _ = run._streets(str(folder), tmp_path)
    assert [path.parent for path in found.paths] == [folder / "val" / "images"] * 3


def test_frames_that_the_source_has_labels_for_are_counted_and_refused(weights: Path, folder: Path, tmp_path: Path):
    work = tmp_path / "work"
    with pytest.raises(DataError, match="6 of the 6 frames are images of 'train' of data, which has labels for them"):
        segmv3.adapt(weights, folder, tmp_path / "new.safetensors", source=folder, run=work)
    assert not work.exists()


@pytest.mark.parametrize(
    ("frames", "flags", "said"),
    [
        ("0", [], "data: 0 cannot be read again and again; record it to a file first"),
        ("{folder}", ["--rounds", "0"], "config: --rounds: must be at least 1"),
        ("{folder}", ["--portion", "1.5"], "config: --portion: is a share of the pixels, above 0 and at most 1"),
        ("{folder}", ["--steps", "0"], "config: schedule.steps: must be at least 1"),
        ("{folder}", ["--crop-size", "0", "8"], "config: data.crop-size: must be at least 1 x 1"),
        ("{folder}/nothing", [], "data: {folder}/nothing does not exist ({folder} holds classes.json, train, val)"),
        ("{folder}", ["--source", "{folder}/train"], "data: {folder}/train holds neither"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(
    frames: str, flags: list[str], said: str, weights: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    new, work = tmp_path / "new.safetensors", tmp_path / "work"
    words = [word.format(folder=folder) for word in ("adapt", str(weights), frames, *flags)]
    assert main([*words, "-o", str(new), "--run", str(work)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(said.format(folder=folder))
    assert not new.exists() and not work.exists()


def test_swapped_arguments_are_told(weights: Path, frames: Path, capsys: pytest.CaptureFixture[str]):
    for net in (weights, "mmseg/lraspp_m-v3-d8", "hub:me/mine"):
        assert main(["adapt", str(frames), str(net), "-o", "new.safetensors"]) == 2
        line = f"data: {net} is a net, not frames; the order is: segmv3 adapt WEIGHTS FRAMES -o NEW\n"
        assert capsys.readouterr().err == line


def test_the_net_itself_is_not_replaced(weights: Path, frames: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["adapt", str(weights), str(frames), "-o", str(weights)]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert main(["adapt", str(weights), str(frames), "-o", str(weights), "--overwrite"]) == 2
    assert "is the net itself" in capsys.readouterr().err

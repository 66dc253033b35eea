"""mini-city: layout, labels, determinism, and what it refuses."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmv3.config import Data
from segmv3.data.datasets import open_dataset
from segmv3.errors import ConfigError, OutputError
from segmv3.images import read_ids, read_image
from segmv3.labels import cityscapes_classes, cityscapes_label_ids, cityscapes_label_train_ids
from segmv3.media.video import VideoReader
from segmv3.mini_city import render_frame, render_scene, write_mini_city
from segmv3.runtime.autotune import STREET

SIZE = (64, 128)


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the default training scenes and all validation scenes, as small as they get."""
    root = tmp_path_factory.mktemp("city") / "mini"
    write_mini_city(root, train=24, size=SIZE)
    return root


def test_layout_is_that_of_cityscapes(city: Path) -> None:
    for split, town, count in (("train", "minitown", 24), ("val", "minihaven", 12)):
        images = sorted((city / "leftImg8bit" / split / town).iterdir())
        assert len(images) == count
        for image in images:
            name = image.name.removesuffix("_leftImg8bit.png")
            assert name.startswith(town)
            labels = city / "gtFine" / split / town
            assert read_image(image).shape[:2] == SIZE
            modes = {"labelIds": "L", "labelTrainIds": "L", "instanceIds": "I;16", "color": "RGBA"}
            for kind, mode in modes.items():
                with Image.open(labels / f"{name}_gtFine_{kind}.png") as label:
                    assert (label.size, label.mode) == (SIZE[::-1], mode)
            content = json.loads((labels / f"{name}_gtFine_polygons.json").read_text())
            assert (content["imgHeight"], content["imgWidth"]) == SIZE
            assert all(len(shape["polygon"]) >= 3 for shape in content["objects"])
            assert content["objects"][0]["label"] == "sky"  # painted first


def test_label_files_agree(city: Path) -> None:
    for path in sorted(city.rglob("*_labelIds.png")):
        stored = read_ids(path)
        labels = cityscapes_label_ids().to_train_ids(stored, path)
        twin = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        assert np.array_equal(labels, cityscapes_label_train_ids().to_train_ids(read_ids(twin), twin))
        instances = np.array(Image.open(path.with_name(path.name.replace("labelIds", "instanceIds"))))
        assert np.array_equal(np.where(instances >= 1000, instances // 1000, instances), stored)
        color = read_image(path.with_name(path.name.replace("labelIds", "color")))
        assert np.array_equal(color[labels != 255], cityscapes_classes().palette[labels[labels != 255]])


@pytest.mark.parametrize(("split", "least"), [("train", 6), ("val", 3)])
def test_every_class_occurs_often_and_ignore_too(city: Path, split: str, least: int) -> None:
    images_with = np.zeros(256, int)
    for path in (city / "gtFine" / split).rglob("*_labelTrainIds.png"):
        images_with[np.unique(read_ids(path))] += 1
    rare = {name: n for name, n in zip(cityscapes_classes().names, images_with, strict=False) if n < least}
    assert not rare
    assert images_with[255] >= least


def test_scenes_are_a_function_of_seed_split_and_index(tmp_path: Path, city: Path) -> None:
    for root in (tmp_path / "a", tmp_path / "b"):
        write_mini_city(root, train=2, val=1, size=SIZE)
    first = _digests(tmp_path / "a")
    assert first == _digests(tmp_path / "b")
    # A longer set begins with the same scenes.
    of_all = {name: first[name] for name in ("mini-city.json", "boxes_train.json", "boxes_val.json")}
    assert {name: digest for name, digest in _digests(city).items() if name in first} | of_all == first
    pictures = [
        render_scene(split, index, size=SIZE, seed=seed)[0].tobytes()
        for split, index, seed in (("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("train", 0, 1))
    ]
    assert len(set(pictures)) == 4


@pytest.mark.parametrize("size", [(128, 256), (100, 321), (256, 128), (512, 1024)])
def test_other_sizes(size: tuple[int, int]) -> None:
    pixels, objects = render_scene("val", 0, size=size, seed=3)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    corners = np.concatenate([np.array(shape["polygon"]) for shape in objects])
    assert corners.min() >= 0
    assert (corners.max(axis=0) < size[::-1]).all()


def test_the_shipped_street_is_a_scene() -> None:
    assert np.array_equal(read_image(STREET), render_scene("val", 0, size=(512, 1024), seed=0)[0])


def test_labels_lie_on_what_is_painted() -> None:
    """Sky is far brighter than the asphalt: their labels must split the picture where the pixels do."""
    pixels, objects = render_scene("train", 4, size=(128, 256), seed=0)
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    annotation = Annotation()
    annotation.fromJsonText(json.dumps({"imgHeight": 128, "imgWidth": 256, "objects": objects}))
    labels = np.array(createLabelImage(annotation, "trainIds"))
    blue_over_red = pixels[..., 2].astype(int) - pixels[..., 0]
    assert (blue_over_red[labels == 10] > 0).mean() > 0.95
    assert pixels[labels == 0].mean() < pixels[labels == 10].mean() - 30


def test_repeating_changes_nothing(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_mini_city(tmp_path, train=1, val=1, size=SIZE, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_mini_city(tmp_path, train=1, val=1, size=SIZE)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(OutputError, match=r"train 1 there, 2 asked; seed 0 there, 5 asked.*nothing was overwritten"):
        write_mini_city(tmp_path, train=2, val=1, size=SIZE, seed=5)


@pytest.mark.parametrize("content", ["photo.png", "leftImg8bit/train/minitown/x.png"])
def test_other_content_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / content).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / content).write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"not empty.*nothing was overwritten.*remove") as refused:
        write_mini_city(tmp_path, train=1, val=1, size=SIZE)
    assert str(tmp_path) in str(refused.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(content).name]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "city").write_text("not a folder")
    with pytest.raises(OutputError):
        write_mini_city(tmp_path / "city", train=1, val=1, size=SIZE)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": (63, 128)}, {"size": (64, 127)}, {"seed": -1}])
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        write_mini_city(tmp_path / "city", **({"train": 1, "val": 1, "size": SIZE} | wrong))
    assert not (tmp_path / "city").exists()


# ---- a drive ----


def test_a_drive_is_a_video_and_a_labelled_split(tmp_path):
    write_mini_city(tmp_path / "drive", size=(64, 128), video=4)
    names = [path.name for path in sorted((tmp_path / "drive/leftImg8bit/val/minidrive").iterdir())]
    assert names == [f"minidrive_000000_{frame:06d}_leftImg8bit.png" for frame in range(4)]
    dataset = open_dataset(Data(dataset="cityscapes", root=tmp_path / "drive"), "val")
    with VideoReader(tmp_path / "drive/drive.webm") as frames:
        assert (frames.fps, frames.size) == (15, (64, 128))
        shown = list(frames)
    assert len(shown) == len(dataset) == 4
    for frame, index in zip(shown, range(4), strict=True):
        assert np.abs(frame.astype(int) - dataset.read(index)[0]).mean() < 12
    write_mini_city(tmp_path / "drive", size=(64, 128), video=4)  # finds it finished
    with pytest.raises(OutputError, match="it holds another mini-city"):
        write_mini_city(tmp_path / "drive", size=(64, 128), video=5)


def test_what_stands_keeps_its_look_from_frame_to_frame():
    first, second = (render_frame(frame, size=(128, 256), seed=0)[0].astype(int) for frame in (0, 1))
    assert np.median(np.abs(first - second)) <= 6  # noise and a small step
    assert np.abs(first - second).mean() < np.abs(first - render_frame(0, size=(128, 256), seed=1)[0]).mean() / 2


@pytest.mark.parametrize("seed", range(4))
def test_nothing_blocks_the_way_of_a_drive(seed):
    for frame in (0, 20, 60):
        _, objects = render_frame(frame, size=(64, 128), seed=seed)
        assert {"road", "sky", "building"} <= {one["label"] for one in objects}
        heavy = [np.ptp(np.array(one["polygon"])[:, 0]) for one in objects if one["label"] in ("bus", "truck", "train")]
        assert max(heavy, default=0) < 100  # of 128 columns


@pytest.mark.parametrize("frames", [0, -3, 100_001])
def test_a_drive_of_no_or_too_many_frames_is_refused(tmp_path, frames):
    with pytest.raises(ConfigError, match=f"a drive has 1 to 100,000 frames, got {frames:,}"):
        write_mini_city(tmp_path / "drive", size=(64, 128), video=frames)
    assert not (tmp_path / "drive").exists()

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import paint
from PIL import Image

from segmv3.config import Data
from segmv3.data.check import check
from segmv3.data.datasets import open_dataset
from segmv3.errors import DataError
from segmv3.images import write_png


def city(root: Path) -> Data:
    return Data(dataset="cityscapes", root=root)


def own(root: Path) -> Data:
    return Data(dataset="folder", root=root)


def test_pairs_are_found_and_read(folder):
    dataset = open_dataset(own(folder), "train")
    assert [pair.name for pair in dataset.pairs] == [f"scene_{i}" for i in range(6)]
    image, labels = dataset.read(2)
    expected_image, expected_labels = paint(2 + 50, (48, 64), 4)
    assert np.array_equal(image, expected_image) and np.array_equal(labels, expected_labels)
    assert dataset.classes.names == ("road", "house", "tree", "sky")


def test_both_folder_layouts_are_the_same_data(folder, tmp_path):
    other = tmp_path / "other"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(folder / split / kind, other / kind / split)
    shutil.copy(folder / "classes.json", other)
    assert open_dataset(own(other), "val").fingerprint() == open_dataset(own(folder), "val").fingerprint()


def test_cityscapes_label_ids_are_preferred_and_read_as_they_are(cityscapes):
    dataset = open_dataset(city(cityscapes), "train")
    _, as_train_ids = dataset.read(0)
    from cityscapesscripts.helpers.labels import trainId2label

    to_id = np.array([trainId2label[i].id for i in range(19)], np.uint8)
    for pair in dataset.pairs:
        ids = to_id[np.array(Image.open(pair.label))]
        write_png(pair.label.with_name(pair.label.name.replace("labelTrainIds", "labelIds")), ids)
    both = open_dataset(city(cityscapes), "train")
    assert all(pair.label.name.endswith("_labelIds.png") for pair in both.pairs)
    assert np.array_equal(both.read(0)[1], as_train_ids)


def test_dot_files_are_not_data(folder):
    (folder / "train" / "images" / ".DS_Store").touch()
    (folder / "train" / "images" / "._scene_0.png").touch()
    assert len(open_dataset(own(folder), "train")) == 6


def test_missing_partners_are_counted_and_named(folder):
    (folder / "train" / "labels" / "scene_1.png").unlink()
    (folder / "train" / "images" / "scene_3.png").unlink()
    (folder / "train" / "images" / "scene_4.png").unlink()
    says = r"1 image has no label and 2 labels have no image in 'train' \(first: scene_1, scene_3, scene_4\)"
    with pytest.raises(DataError, match=says):
        open_dataset(own(folder), "train")


def test_two_files_of_one_name_are_refused(folder):
    shutil.copy(folder / "train/images/scene_0.png", folder / "train/images/scene_0.jpg")
    with pytest.raises(DataError, match="share the name scene_0"):
        open_dataset(own(folder), "train")


def test_wrong_roots_say_what_is_there(cityscapes, tmp_path):
    with pytest.raises(DataError, match="data root .*missing does not exist"):
        open_dataset(city(tmp_path / "missing"), "train")
    with pytest.raises(DataError, match=rf"did you mean .*Use --data.root {cityscapes}\."):
        open_dataset(city(tmp_path), "train")  # one too high
    with pytest.raises(DataError, match=rf"did you mean .*Use --data.root {cityscapes}\."):
        open_dataset(city(cityscapes / "leftImg8bit"), "train")  # one too deep
    with pytest.raises(DataError, match=r"leftImg8bit has train, val \(split 'tarin'\)"):
        open_dataset(city(cityscapes), "tarin")


def test_a_doubled_folder_is_recognised(cityscapes):
    inner = cityscapes / "leftImg8bit" / "leftImg8bit"
    inner.mkdir()
    for split in ("train", "val"):
        (cityscapes / "leftImg8bit" / split).rename(inner / split)
    with pytest.raises(DataError, match=r"did you mean .*/leftImg8bit/leftImg8bit/train \(4 images\)\? Move it up"):
        open_dataset(city(cityscapes), "train")


def test_packed_archives_are_recognised(tmp_path):
    (tmp_path / "leftImg8bit_trainvaltest.zip").touch()
    with pytest.raises(DataError, match="leftImg8bit_trainvaltest.zip still packed"):
        open_dataset(city(tmp_path), "train")


def test_labels_without_the_right_suffix_are_missing(cityscapes):
    for path in (cityscapes / "gtFine").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("labelTrainIds", "color")))
    with pytest.raises(DataError, match=r"_labelIds.png or \*_labelTrainIds.png under .*gtFine/train"):
        open_dataset(city(cityscapes), "train")


def test_a_file_in_another_citys_folder_is_refused(cityscapes):
    (cityscapes / "leftImg8bit/train/bochum").mkdir()
    stray = cityscapes / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    stray.rename(cityscapes / "leftImg8bit/train/bochum" / stray.name)
    with pytest.raises(DataError, match="folder of another city; move it to aachen/"):
        open_dataset(city(cityscapes), "train")


def test_folder_without_classes_file(folder, tmp_path):
    with pytest.raises(DataError, match=rf"did you mean --data.root {folder}\?"):
        open_dataset(own(tmp_path), "train")
    (folder / "classes.json").unlink()
    with pytest.raises(DataError, match=r"no classes\.json or classes\.txt"):
        open_dataset(own(folder), "train")


def spoil(path: Path, kind: str) -> None:
    pixels = np.array(Image.open(path))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "size":
        write_png(path, pixels[:-1])
    elif kind == "id":
        pixels[0, 0] = 200
        write_png(path, pixels)
    elif kind == "rgb":
        write_png(path, np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut", r"scene_4\.png is damaged"),
        ("size", r"scene_4\.png is 64x48 but its label .*scene_4\.png is 64x47"),
        ("id", r"scene_4\.png has ids \{200\}; expected 0-3 or 255"),
        ("rgb", r"scene_4\.png is a colour image"),
    ],
)
def test_the_check_finds_what_training_would_stumble_over(folder, kind, says):
    label = folder / "train" / "labels" / "scene_4.png"
    check(open_dataset(own(folder), "train"))  # fine, and remembered as fine
    spoil(label, kind)
    with pytest.raises(DataError, match=says):
        check(open_dataset(own(folder), "train"))


def test_the_check_decodes_each_file_once(folder):
    dataset = open_dataset(own(folder), "train")
    calls: list[tuple[int, int]] = []
    check(dataset, lambda done, total: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]
    calls.clear()
    check(dataset, lambda done, total: calls.append((done, total)))
    assert calls == []
    classes = (folder / "classes.json").read_text().replace('"id": 3', '"id": 9')
    (folder / "classes.json").write_text(classes)
    with pytest.raises(DataError, match=r"has ids \{3\}"):  # another table: what passed before does not count
        check(open_dataset(own(folder), "train"))


def test_data_is_never_altered(folder):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    dataset = open_dataset(replace(own(folder)), "val")
    check(dataset)
    dataset.read(0)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert before == after

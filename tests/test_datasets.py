import copy
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import check, paint
from PIL import Image

from segmv3.checkpoint import save
from segmv3.cli import main
from segmv3.config import Data
from segmv3.data.check import class_remark, contents
from segmv3.data.datasets import open_dataset
from segmv3.data.facts import read_pairs
from segmv3.errors import ConfigError, DataError, Segmv3Warning
from segmv3.images import write_png
from segmv3.models.zoo import create_model
from segmv3.training.loop import train


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
    assert calls == [(i, 12) for i in range(1, 13)]  # images and labels
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


# --- nothing is left out without a word ---


def names(root: Path, split: str = "train") -> list[str]:
    return [pair.name for pair in open_dataset(own(root), split).pairs]


def test_linked_folders_and_files_are_followed(folder, cityscapes, tmp_path):
    whole = names(folder)
    for kind in ("images", "labels"):
        place = folder / "train" / kind
        (tmp_path / kind).mkdir()
        for i in (1, 2):
            (place / f"scene_{i}.png").rename(tmp_path / kind / f"scene_{i}.png")
        (place / "linked").symlink_to(tmp_path / kind)
        (place / "round").symlink_to(place)
        (place / "above").symlink_to(folder)  # val is no part of train
        (tmp_path / kind / "again").symlink_to(place)
        (place / "twice").symlink_to(tmp_path / kind)
    assert names(folder) == whole
    for kind in ("leftImg8bit", "gtFine"):
        (cityscapes / kind / "train/aachen").rename(tmp_path / f"{kind}-aachen")
        (cityscapes / kind / "train/aachen").symlink_to(tmp_path / f"{kind}-aachen")
    assert len(open_dataset(city(cityscapes), "train")) == 4


def test_a_link_to_nowhere_is_named(folder, tmp_path):
    (folder / "train/images/more").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match="images/more is a link to nowhere"):
        open_dataset(own(folder), "train")


def test_what_is_not_read_is_counted_and_named(folder, capsys):
    place = folder / "train/images"
    for name in ("a.gif", "b.GIF", "c.npy", "notes.txt", ".hidden.png", "._scene_0.png"):
        (place / name).write_bytes(b"?")
    os.mkfifo(place / "d.png")
    (place / ".thumbnails").mkdir()
    (place / ".thumbnails/e.png").write_bytes(b"?")
    (folder / "images").mkdir()
    shutil.copytree(place, folder / "images/train", ignore=lambda *_: ["d.png"])
    shutil.copytree(folder / "train/labels", folder / "train/labels-2")
    shutil.copy(place / "scene_0.png", folder / "train")
    with pytest.warns(Segmv3Warning) as caught:
        assert len(open_dataset(own(folder), "train")) == 6
    told = [str(each.message).replace(f"{folder}/", "") for each in caught]
    assert told[0].startswith(
        "data: train/images: left out 2 .gif, 2 hidden, 1 .npy, 1 no regular file (first: .hidden.png); read are .bmp "
    )
    assert told[1:] == [
        "data: images/train: left out 6 images; those of train/images are read",
        "data: train/labels-2: left out 6 images; those of train/images are read",
        "data: train: left out 1 images (first: scene_0.png); those of train/images are read",
    ]
    assert main(["data", "check", str(folder), "--split", "train"]) == 0
    assert "warning: train: " in (said := capsys.readouterr().out) and "left out 2 .gif" in said


def test_images_of_cityscapes_under_other_names_are_named(cityscapes):
    place = cityscapes / "leftImg8bit/train/aachen"
    shutil.copy(place / "aachen_000000_000019_leftImg8bit.png", place / "aachen_000009_000019.png")
    with pytest.warns(Segmv3Warning, match=r"left out 1 without _leftImg8bit in the name \(first: aachen/"):
        assert len(open_dataset(city(cityscapes), "train")) == 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(folder):
    (folder / "train/images/closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed cannot be listed"):
        open_dataset(own(folder), "train")


# --- layouts ---


def test_frames_of_drives_that_share_file_names_are_paired_by_their_way(folder, capsys):
    for kind in ("images", "labels"):
        place = folder / "train" / kind
        for i in range(6):
            (place / f"drive_{i % 2}").mkdir(exist_ok=True)
            (place / f"scene_{i}.png").rename(place / f"drive_{i % 2}" / f"{i // 2}.png")
    dataset = open_dataset(own(folder), "train")
    assert [pair.name for pair in dataset.pairs] == [f"drive_{d}/{i}" for d in (0, 1) for i in range(3)]
    for pair in dataset.pairs:
        assert pair.image.relative_to(folder / "train/images") == pair.label.relative_to(folder / "train/labels")
    assert main(["data", "check", str(folder)]) == 0
    shutil.copy(folder / "train/images/drive_0/0.png", folder / "train/images/drive_0/0.jpg")
    with pytest.raises(DataError, match="share the name drive_0/0; keep one of them"):
        open_dataset(own(folder), "train")


def test_bdd100k_is_read_as_its_archives_unpack(folder, tmp_path):
    root = tmp_path / "bdd100k"
    for split in ("train", "val"):
        shutil.copytree(folder / split / "images", root / "images/10k" / split)
        shutil.copytree(folder / split / "labels", root / "labels/sem_seg/masks" / split)
    shutil.copy(folder / "classes.json", root)
    assert names(root) == names(folder) and names(root, "val") == names(folder, "val")


def test_idd_is_called_what_it_is(cityscapes, capsys):
    for kind, mark in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labellevel3Ids")):
        for path in sorted((cityscapes / kind).rglob("*.png")):
            place = path.parent.parent / "0" / f"{path.name[7:13]}_{mark}.png"
            place.parent.mkdir(exist_ok=True)
            path.rename(place)
    for data in (city(cityscapes), own(cityscapes)):
        with pytest.raises(DataError, match="_gtFine_labellevel3Ids.png is a label of IDD; segmv3 data import "):
            open_dataset(data, "train")
    assert main(["data", "check", str(cityscapes)]) == 2
    assert "IDD" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_names_need_not_be_utf_8(folder):
    name = os.fsdecode(b"stra\xdfe.png")
    for kind in ("images", "labels"):
        (folder / "train" / kind / "scene_0.png").rename(folder / "train" / kind / name)
    dataset = open_dataset(own(folder), "train")
    check(dataset)
    check(dataset, lambda *_: pytest.fail("it is remembered"))
    assert len(dataset.fingerprint()) == 64 and contents(dataset)["images"]
    assert main(["data", "check", str(folder), "--output", str(folder.parent / "out")]) == 0


# --- what can be learned ---


def relabel(folder: Path, change: dict[int, int], *splits: str) -> None:
    for split in splits or ("train", "val"):
        for path in (folder / split / "labels").iterdir():
            pixels = np.array(Image.open(path))
            for was, now in change.items():
                pixels[pixels == was] = now
            write_png(path, pixels)


def test_a_class_that_cannot_be_learned_is_named(folder):

    def remark(split: str) -> str:
        return class_remark(open_dataset(own(folder), split), folder)

    assert remark("train") == ""
    relabel(folder, {3: 255})
    says = "; id 255 is read as ignore: where it means a class, give it another (segmv3 data import)"
    assert remark("train") == f"1 class is absent (cannot be learned): sky{says}"
    assert remark("val") == f"1 class is absent (left out of the mean IoU unless predicted): sky{says}"
    relabel(folder, {1: 255, 2: 255})
    with pytest.raises(DataError, match=r"road is the only class with a pixel in 'train': a net of one class"):
        remark("train")
    assert remark("val").endswith("predicted): house, tree, sky")  # 255 cannot mean all of them
    relabel(folder, {0: 255})
    with pytest.raises(DataError, match=r"no pixel of 'val' is labelled"):
        remark("val")


def test_the_three_commands_say_the_same_of_classes(folder, tmp_path, capsys):
    relabel(folder, {3: 255})
    config = tmp_path / "c.py"
    config.write_text(
        "from pathlib import Path\nfrom segmv3.config import AdamW, Config, Data, Schedule\n"
        "from segmv3.models.zoo import NETS\n"
        f"data = Data(dataset='folder', root=Path({str(folder)!r}), batch_size=2, crop_size=(32, 48), workers=0)\n"
        "config = Config(model=NETS['lraspp_small_d8'], data=data, optim=AdamW(lr=1e-3),\n"
        "    schedule=Schedule(steps=1, eval_every=1, save_every=1, log_every=1))\n"
    )

    def says(*arguments: object) -> str:
        main([str(each) for each in arguments])
        return capsys.readouterr().out

    hint = "id 255 is read as ignore: where it means a class, give it another (segmv3 data import)"
    absent = f"1 class is absent ({{}}): sky; {hint}\n"
    run, start = tmp_path / "run", tmp_path / "start.safetensors"
    net = create_model("lraspp_small_d8", 4)
    net.head.deep_classifier.bias.data[3] = -1e3  # which never predicts sky
    save(net, start, classes=("road", "house", "tree", "sky"))
    trained = says("train", config, "--run", run, "--threads", 1, "--model.pretrained", start)
    assert "data: 'train': " + absent.format("cannot be learned") in trained
    assert json.loads((run / "metrics.json").read_text())["absent"] == ["sky"]
    assert "on 3 images of val without sky (absent) (best so far)\n" in trained
    assert "% mIoU on val without sky (absent) at step 1; wrote" in trained
    scored = says("evaluate", config, "--weights", run / "best.safetensors", "--threads", 1)
    left_out = absent.format("left out of the mean IoU unless predicted")
    assert scored.startswith(f"data: 'val': {left_out}") and "classes: sky has no pixel in val)" in scored
    checked = says("data", "check", folder)
    assert f"warning: train: {absent.format('cannot be learned')}" in checked
    assert f"warning: val: {left_out}" in checked


# --- the same data ---


def test_contents_are_pixels_ids_and_classes(folder):
    def now(split: str = "train") -> dict:
        return contents(open_dataset(own(folder), split))

    first = now()
    assert first["ids"] == {"0": "road", "1": "house", "2": "tree", "3": "sky", "255": "ignored"}
    shutil.copytree(folder, folder.parent / "copy")
    assert contents(open_dataset(own(folder.parent / "copy"), "train")) == first != now("val")
    Image.open(folder / "train/images/scene_1.png").save(folder / "train/images/scene_1.png", compress_level=1)
    assert now() == first  # other bytes, the same picture
    write_png(folder / "train/images/scene_1.png", np.zeros((48, 64, 3), np.uint8))
    assert {key for key in first if now()[key] != first[key]} == {"images"}
    relabel(folder, {1: 2}, "train")
    assert {key for key in first if now()[key] != first[key]} == {"images", "labels"}


def test_a_run_goes_on_over_the_data_it_began_with_alone(config, folder, tmp_path):
    run, short = tmp_path / "run", replace(config, schedule=replace(config.schedule, steps=2, eval_every=2))

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(short, run, device="cpu", threads=1, quiet=True, on_evaluation=stop)
    classes = (folder / "classes.json").read_text()
    exchanged = classes.replace('"id": 0', '"id": 9').replace('"id": 3', '"id": 0').replace('"id": 9', '"id": 3')
    (folder / "classes.json").write_text(exchanged)
    with pytest.raises(ConfigError, match='run was started with other classes/ids: id 0 "road" -> "sky", id 3 "sky"'):
        train(short, run, device="cpu", threads=1, quiet=True)
    (folder / "classes.json").write_text(classes)
    label = folder / "val/labels/scene_1.png"
    whole = label.read_bytes()
    write_png(label, np.zeros((48, 64), np.uint8))
    says = r"other pixels in files of the same names: labels of val\. Use another --run"
    with pytest.raises(ConfigError, match=says):
        train(short, run, device="cpu", threads=1, quiet=True)
    label.write_bytes(whole)
    kept = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({key: kept[key] for key in kept if key != "contents"}))
    assert train(short, run, device="cpu", threads=1, quiet=True).step == 2  # of an earlier version: not known


# --- memory ---


def spoilt(text: str) -> Iterator[str]:
    yield from ("", "[]", "null", "{", "[" * 50_000, text[:-100], text[: text.index("\n") - 9], "\0" * 40)
    yield from ('{"format": 1}', '{"format": 1, "files": []}', '{"format": 2, "files": {}}')
    content = json.loads(text.partition("\n")[0])
    yield text.replace('"pixels', '"pixel').replace('"L"', '"P"')  # changed, the checksum not
    for entry in (3, "a", [], {}, None, {"state": 1}, {"facts": {}}):
        yield json.dumps({"format": 1, "files": dict.fromkeys(content["files"], entry)})
    facts = {"size": [[0, 64], ["48", 64], [48], 48, None], "ids": [[[0, 1]], [[300, 3072]], [[0, -1]], [0]]}
    facts |= {"digest": ["", 7, None, "g" * 32], "mode": [7], "mean": [[1.0]], "orientation": [[1]], "more": [1]}
    for key, values in facts.items():
        for value in values:
            changed = copy.deepcopy(content)
            for entry in changed["files"].values():
                entry["facts"][key] = value
            yield json.dumps(changed)


def test_a_memory_that_is_not_ours_is_not_believed(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    dataset = open_dataset(own(folder), "val")
    expected = read_pairs(dataset)
    records = {path: path.read_text() for path in (tmp_path / "cache/checked").iterdir()}
    for spoil in zip(*map(spoilt, records.values()), strict=True):
        for record, text in zip(records, spoil, strict=True):
            record.write_text(text)
        assert read_pairs(dataset) == expected
        read_pairs(dataset, lambda *_: pytest.fail("it was renewed"))
    for record in records:
        record.unlink()
        os.mkfifo(record)
    assert read_pairs(dataset) == expected
    for record, text in records.items():
        record.unlink()
        record.write_text(text.partition("\n")[0])  # without its checksum
    renewed: list[tuple[int, int]] = []
    read_pairs(dataset, lambda *far: renewed.append(far))
    assert len(renewed) == 2 * len(dataset)


def test_a_split_that_is_not_there_is_told_from_a_set_of_another_layout(folder):
    with pytest.raises(DataError, match=r"found 0 images .*it has the splits train, val$"):
        open_dataset(Data(dataset="folder", root=folder), "trian")

import errno
import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import locked_elsewhere, paint

from segmv3.cli import main
from segmv3.config import Data
from segmv3.data import pack as packing
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.loader import train_batches
from segmv3.data.pack import pack
from segmv3.data.packed import open_packed, open_training, verify, version
from segmv3.errors import DataError, OutputError, ResourceError
from segmv3.files import is_temporary
from segmv3.images import write_png

context = multiprocessing.get_context("fork")


def own(root: Path, **settings) -> Data:
    return Data(dataset="folder", root=root, **settings)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    """Six pairs, two of them of other sizes."""
    for name, size in (("scene_1", (33, 47)), ("scene_4", (70, 21))):
        image, labels = paint(9, size, 4)
        labels[:3] = 255
        write_png(folder / f"train/images/{name}.png", image)
        write_png(folder / f"train/labels/{name}.png", labels)
    return open_dataset(own(folder), "train")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.name != ".lock"}


def test_pixels_come_back_as_the_files_have_them(dataset, cache):
    packed = pack(dataset, cache)
    for reopened in (packed, open_packed(dataset, cache)):
        for i in range(len(dataset)):
            for ours, theirs in zip(reopened.read(i), dataset.read(i), strict=True):
                assert np.array_equal(ours, theirs) and ours.dtype == np.uint8 and not ours.flags.writeable
    assert sorted(contents(cache)) == ["train.json", "train.pixels"]
    assert packed.fingerprint() == dataset.fingerprint()
    index = json.loads((cache / "train.json").read_text())
    assert index["classes"]["names"] == ["road", "house", "tree", "sky"]
    assert index["version"] == version(packed.images, packed.classes.names, half=False)


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork")])
def test_batches_are_those_of_the_files(dataset, cache, workers, method):
    data = own(dataset.pairs[0].image.parents[2], cache=cache, batch_size=4, crop_size=(40, 48))
    pack(dataset, cache)
    both = [
        train_batches(each, data_, seed=5, start=2, stop=6, start_method=how)
        for each, data_, how in (
            (dataset, data, None),
            (open_training(data), own(data.root, batch_size=4, crop_size=(40, 48), workers=workers), method),
        )
    ]
    for (image, labels, colors), (other_image, other_labels, others) in zip(*both, strict=True):
        assert image.equal(other_image) and labels.equal(other_labels)
        assert colors.matrix.equal(others.matrix)


def test_cityscapes_labels_are_packed_as_train_ids(cityscapes, cache):
    dataset = open_dataset(Data(dataset="cityscapes", root=cityscapes), "val")
    packed = pack(dataset, cache)
    assert all(np.array_equal(packed.read(i)[1], dataset.read(i)[1]) for i in range(2))


def test_a_pickled_cache_does_not_carry_its_pixels(dataset, cache):
    packed = pack(dataset, cache)
    packed.read(0)
    again = pickle.loads(pickle.dumps(packed))
    assert "_pixels" not in again.__dict__ and np.array_equal(again.read(3)[0], packed.read(3)[0])


def test_half_size(dataset, cache):
    packed = pack(dataset, cache, half=True)
    for i, each in enumerate(packed.images):
        (image, labels), (full, full_labels) = packed.read(i), dataset.read(i)
        assert image.shape[:2] == labels.shape == ((full.shape[0] + 1) // 2, (full.shape[1] + 1) // 2)
        assert set(np.unique(labels)) <= set(np.unique(full_labels))
        if each.name not in ("scene_1", "scene_4"):
            blocks = full.reshape(24, 2, 32, 2, 3).astype(float).mean((1, 3))
            assert np.abs(image - blocks).max() <= 0.5
            assert np.array_equal(labels, full_labels[::2, ::2])
    assert packed.fingerprint() != dataset.fingerprint()
    assert open_packed(dataset, cache).half
    with pytest.raises(OutputError, match="holds 'train' at half size"):
        pack(dataset, cache)


# --- another version of the data set ---


def test_other_images_are_refused(dataset, cache, folder):
    pack(dataset, cache)
    image, labels = paint(77, (48, 64), 4)
    write_png(folder / "train/images/scene_9.png", image)
    write_png(folder / "train/labels/scene_9.png", labels)
    with pytest.raises(DataError, match=r"of another version of 'train': it has 6 images, the data set 7 .*scene_9"):
        open_packed(open_dataset(own(folder), "train"), cache)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_changed_pixels_are_refused(dataset, cache, folder, kind):
    pack(dataset, cache)
    write_png(folder / f"train/{kind}/scene_2.png", paint(99, (48, 64), 4)[kind == "labels"])
    with pytest.raises(DataError, match="of another version of 'train': scene_2 has changed; pack again"):
        open_packed(dataset, cache)


def test_other_classes_are_refused(dataset, cache, folder):
    pack(dataset, cache)
    path = folder / "classes.json"
    original = path.read_text()
    path.write_text(original.replace("tree", "wood"))
    with pytest.raises(DataError, match="its 4 classes are not the 4 of the data set"):
        open_packed(open_dataset(own(folder), "train"), cache)
    entries = json.loads(original)
    entries["classes"][1]["id"], entries["classes"][2]["id"] = 2, 1
    path.write_text(json.dumps(entries))  # names and files are the same, the meaning of their ids is not
    with pytest.raises(DataError, match="another version"):
        open_packed(open_dataset(own(folder), "train"), cache)


def test_a_copy_of_the_files_is_the_same_version(dataset, cache, folder, tmp_path):
    pack(dataset, cache)
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert len(open_packed(open_dataset(own(moved), "train"), cache)) == 6


# --- damage ---


def test_damaged_pixels_are_found(dataset, cache):
    packed = pack(dataset, cache)
    with (cache / "train.pixels").open("r+b") as file:
        file.seek(packed.images[3].offset + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    reopened = open_packed(dataset, cache)
    for read_it_all in (lambda: verify(reopened), lambda: pack(dataset, cache)):
        with pytest.raises(DataError, match=r"train\.pixels is damaged at scene_3; remove .*cache and pack again"):
            read_it_all()


def test_a_cut_file_and_a_broken_index_are_refused(dataset, cache):
    pack(dataset, cache)
    index, pixels = cache / "train.json", cache / "train.pixels"
    text, data = index.read_text(), pixels.read_bytes()
    pixels.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"train\.pixels has [\d,]+ bytes of [\d,]+"):
        open_packed(dataset, cache)
    pixels.write_bytes(data)
    for broken, says in (
        (text[:-9], r"train\.json is damaged"),
        ("[]", r"train\.json is damaged"),
        (text.replace('"width": 64', '"width": 32'), r"train\.json was altered"),
        (text.replace('"format": 1', '"format": 99'), "has format 99, not 1"),
    ):
        index.write_text(broken)
        with pytest.raises(DataError, match=says):
            open_packed(dataset, cache)


def test_what_is_not_there_is_named(dataset, cache, folder):
    with pytest.raises(DataError, match="holds no packed 'train'; run segmv3 data pack"):
        open_training(own(folder, cache=cache))
    pack(dataset, cache)
    with pytest.raises(DataError, match="holds no packed 'val'"):
        open_packed(open_dataset(own(folder), "val"), cache)


# --- stopped on the way ---


def _die(dataset: Dataset, cache: Path, point: str) -> None:
    """Pack, and end as a power cut would: after three images, before the last rename, or before the index."""

    def count(done: int, _: int) -> None:
        if point == "in the middle" and done == 3:
            os._exit(9)

    rename = os.replace

    def dying(source: Path, target: Path) -> None:
        if Path(target).name == {"before the rename": "train.pixels", "before the index": "train.json"}.get(point):
            os._exit(9)
        rename(source, target)

    os.replace = dying
    pack(dataset, cache, progress=count)


@pytest.mark.parametrize("point", ["in the middle", "before the rename", "before the index"])
def test_packing_goes_on_where_it_was_killed(dataset, cache, tmp_path, point, monkeypatch):
    whole = contents(pack(dataset, tmp_path / "whole").folder)
    process = context.Process(target=_die, args=(dataset, cache, point))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    with pytest.raises(DataError, match="is not finished; run segmv3 data pack"):
        open_packed(dataset, cache)
    decoded: list[int] = []
    read = Dataset.read
    monkeypatch.setattr(Dataset, "read", lambda self, index: decoded.append(index) or read(self, index))
    pack(dataset, cache)
    assert {name: data for name, data in contents(cache).items() if not is_temporary(Path(name))} == whole
    assert sorted(decoded) == ([3, 4, 5] if point == "in the middle" else [])


def test_what_an_earlier_run_left_is_checked(dataset, cache, tmp_path):
    whole = contents(pack(dataset, tmp_path / "whole").folder)
    process = context.Process(target=_die, args=(dataset, cache, "in the middle"))
    process.start()
    process.join(60)
    part = cache / "train.pixels.part"
    part.write_bytes(part.read_bytes()[:-7000] + bytes(7000))  # as a disk leaves it that was not flushed
    with (cache / "train.journal").open("a") as journal:
        journal.write('{"name": "sc')
    pack(dataset, cache)
    assert contents(cache) == whole


def test_a_changed_tier_or_file_starts_again(dataset, cache, folder, tmp_path):
    for change in (
        lambda: None,
        lambda: shutil.copy(folder / "train/images/scene_3.png", folder / "train/images/scene_0.png"),
    ):
        process = context.Process(target=_die, args=(dataset, cache, "in the middle"))
        process.start()
        process.join(60)
        change()
        packed = pack(dataset, cache)
        assert np.array_equal(packed.read(0)[0], dataset.read(0)[0])
        shutil.rmtree(cache)


def test_a_full_disk_is_one_line_and_leaves_nothing_to_use(dataset, cache, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        pack(dataset, cache)
    monkeypatch.undo()
    with pytest.raises(DataError, match="cache .* (is not finished|holds no packed)"):
        open_packed(dataset, cache)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10))
    shutil.rmtree(cache)
    with pytest.raises(ResourceError, match=r"the disk is full: .*train\.pixels needs 0\.1 MB"):
        pack(dataset, cache)
    monkeypatch.undo()
    assert pack(dataset, cache)


def test_a_damaged_image_stops_packing_and_is_named(dataset, cache, folder):
    path = folder / "train/images/scene_5.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"scene_5\.png is damaged"):
        pack(dataset, cache)
    with pytest.raises(DataError, match="is not finished"):
        open_packed(dataset, cache)


def test_a_second_process_waits_and_compares(dataset, cache):
    pack(dataset, cache)
    index, said = cache / "train.json", []
    finished = index.read_bytes()
    index.unlink()
    with locked_elsewhere(cache / ".lock") as other:

        def finishes(line):
            said.append(line)
            index.write_bytes(finished)
            other.kill()

        before = (cache / "train.pixels").stat().st_mtime_ns
        assert len(pack(dataset, cache, say=finishes)) == len(dataset)
    assert said == [f"data: waiting for another process that packs into {cache}"]
    assert (cache / "train.pixels").stat().st_mtime_ns == before


# --- the command ---


def test_the_command(folder, cache, capsys):
    assert main(["data", "pack", str(folder), str(cache), "--split", "train", "val"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 images of data train" in said and "3 images of data val" in said and "all checksums agree" in said
    before = contents(cache)
    assert main(["data", "pack", str(folder), str(cache)]) == 0
    assert contents(cache) == before
    (folder / "classes.json").write_text((folder / "classes.json").read_text().replace("sky", "air"))
    assert main(["data", "pack", str(folder), str(cache)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["data", "pack", "--overwrite", "--half", str(folder), str(cache)]) == 0
    assert open_packed(open_dataset(own(folder), "train"), cache).half


def test_the_command_alone_says_what_is_missing(capsys):
    assert main(["data", "pack"]) == 2
    assert "SOURCE, OUTPUT are missing; write segmv3 data pack SOURCE OUTPUT" in capsys.readouterr().err

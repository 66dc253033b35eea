import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import check, paint
from PIL import Image

from segmv3.cli import main
from segmv3.config import Data
from segmv3.data.check import problems_in, refuse
from segmv3.data.datasets import open_dataset
from segmv3.data.sources import layout_of, source_of
from segmv3.doctor import examine
from segmv3.errors import DataError
from segmv3.images import write_png
from segmv3.media.draw import WRONG

SPLITS = ("train", "val")


def own(root: Path) -> Data:
    return Data(dataset="folder", root=root)


def found(root: Path, *splits: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The findings by (split, kind); every fixture is tiny, which is left out."""
    result = examine(Data(dataset=layout_of(root), root=root), splits or SPLITS).result
    return {(f["split"], f["kind"]): f for f in result["findings"] if f["kind"] != "tiny"}


def names(finding: dict[str, Any]) -> list[str]:
    return [Path(file["path"]).name for file in finding["files"]]


def turn_sideways(path: Path, *, upright: bool) -> None:
    """Store an image as a JPEG with EXIF orientation 6; `upright`: so that a viewer shows it as it was."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(path).convert("RGB")
    image = image.transpose(Image.Transpose.ROTATE_90) if upright else image
    image.save(path.with_suffix(".jpg"), exif=exif)
    path.unlink()


def test_numbers_are_those_of_the_pixels(folder):
    result = examine(own(folder), SPLITS).result
    images, labels = zip(*(paint(i + 50, (48, 64), 4) for i in range(6)), strict=True)
    train = result["splits"]["train"]
    assert train["mean"] == pytest.approx(np.mean(images, axis=(0, 1, 2)), abs=1e-3)
    assert train["std"] == pytest.approx(np.std(images, axis=(0, 1, 2)), abs=1e-3)
    assert train["images"] == train["labels"] == train["usable_pairs"] == 6
    assert train["sizes"] == {"64x48": 6} and train["image_modes"] == {"PNG RGB": 6}
    counts = np.bincount(np.ravel(labels), minlength=4)
    assert train["ids"] == {str(i): n for i, n in enumerate(counts.tolist()) if n}
    for i, row in enumerate(result["classes"]):
        assert row["splits"]["train"]["pixels"] == counts[i]
        assert row["splits"]["train"]["share"] == pytest.approx(100 * counts[i] / counts.sum())
        assert row["splits"]["train"]["images"] == sum((each == i).any() for each in labels)
    assert result["usable"] and not result["errors"]


def test_all_faults_are_told_at_once(cityscapes, capsys, tmp_path):
    images = sorted((cityscapes / "leftImg8bit/train").rglob("*.png"))
    labels = sorted((cityscapes / "gtFine/train").rglob("*.png"))
    for i in range(4, 12):
        for files, pixels in zip((images, labels), paint(i, (48, 64), 19), strict=True):
            path = files[0].with_name(files[0].name.replace("aachen_000000", f"aachen_{i:06d}"))
            write_png(path, pixels)
            files.append(path)
    images[0].write_bytes(images[0].read_bytes()[:-60])
    images[1].write_bytes(b"")
    pixels = np.array(Image.open(labels[2]))
    pixels[5, 5] = 77
    write_png(labels[2], pixels)
    Image.fromarray(np.array(Image.open(labels[3])).astype(np.uint16)).save(labels[3])
    Image.open(labels[4]).convert("RGB").save(labels[4])
    write_png(images[5], np.array(Image.open(images[5]))[:-1])
    turn_sideways(images[6], upright=False)
    turn_sideways(images[7], upright=True)
    palette = Image.fromarray(np.array(Image.open(labels[8])), "P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(labels[8])
    labels[9].unlink()
    images[10].unlink()
    shutil.copy(images[11], min((cityscapes / "leftImg8bit/val").rglob("*.png")))
    (images[0].parent / ".DS_Store").write_bytes(b"junk")

    findings = found(cityscapes)
    assert names(findings["train", "damaged"]) == [images[0].name, images[1].name]
    assert names(findings["train", "illegal ids"]) == [labels[2].name]
    assert "{77}" in findings["train", "illegal ids"]["files"][0]["text"]
    assert names(findings["train", "no label map"]) == [labels[3].name, labels[4].name]
    assert names(findings["train", "sizes differ"]) == [images[5].name, images[6].with_suffix(".jpg").name]
    assert "EXIF" in findings["train", "sizes differ"]["files"][1]["text"]
    assert names(findings["train", "EXIF"]) == [images[i].with_suffix(".jpg").name for i in (6, 7)]
    assert names(findings["train", "palette"]) == [labels[8].name]
    assert names(findings["val", "leak"]) == ["munster_000000_000019_leftImg8bit.png"]
    assert findings["val", "leak"]["files"][0]["partner"] == str(images[11])
    unpaired = examine(Data(dataset="cityscapes", root=cityscapes), SPLITS).result["findings"][:2]
    assert [names(finding) for finding in unpaired] == [[images[9].name], [labels[10].name]]
    assert [finding["text"] for finding in unpaired] == ["1 image has no label", "1 label has no image"]

    output = tmp_path / "out"
    assert main(["data", "check", str(cityscapes), "--output", str(output)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "cannot be used as it is: 6 errors (9 files)" in said.err
    assert f"is damaged (it ends too early; file of {images[0].stat().st_size:,} bytes)" in said.out
    result = json.loads((output / "check.json").read_text())
    assert not result["usable"] and result["errors"] == 6
    page = (output / "check.html").read_text()
    assert "cannot be decoded" in page and "illegal ids in red" in page and images[9].name in page
    assert (output / "figures/shares.png").is_file() and (output / "figures/samples.png").is_file()


def test_clean_data_leaves_zero_and_a_page(folder, capsys, tmp_path):
    config = tmp_path / "streets.py"
    config.write_text(
        "from pathlib import Path\nfrom segmv3.config import Config, Data, Model, Schedule\n"
        f"config = Config(model=Model(), data=Data(dataset='folder', root=Path({str(folder)!r})),"
        " schedule=Schedule(steps=10))\n"
    )
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert main(["data", "check", str(config), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert not said.err and "can be used: 0 errors" in said.out
    assert "house" in said.out and "64x48" in said.out and said.out.splitlines()[0] == str(folder)
    page = (tmp_path / "out/check.html").read_text()
    assert "scene_2" in page and "prefers-color-scheme: dark" in page
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    assert main(["data", "check", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "check.json exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert main(["data", "check", str(folder), "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    assert main(["data", "check", str(folder), "--output", str(folder / "out")]) == 2
    assert "lies in the data set" in capsys.readouterr().err


def test_the_second_look_reads_nothing_whoever_was_first(folder):
    read: list[tuple[str, int, int]] = []
    examine(own(folder), ("train",), lambda *call: read.append(call))
    assert read == [("train", i, 12) for i in range(1, 13)]  # images and labels
    check(open_dataset(own(folder), "train"), lambda *_: pytest.fail("training read what the doctor had read"))
    check(open_dataset(own(folder), "val"))
    read.clear()
    first = examine(own(folder), SPLITS, lambda *call: read.append(call))
    assert read == []
    write_png(folder / "train/labels/scene_3.png", np.zeros((48, 64), np.uint8))
    again = examine(own(folder), SPLITS, lambda *call: read.append(call))
    assert read == [("train", 1, 1)]
    assert again.result["splits"]["train"]["ids"]["0"] > first.result["splits"]["train"]["ids"]["0"]


def test_a_spoiled_memory_is_no_error(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    expected = examine(own(folder), SPLITS).result
    for record in (tmp_path / "cache/checked").iterdir():
        record.write_text('{"format": 1, "files": {"image scene_0.png": {"state": 3}, "label scene_0.png": 4}}')
    assert examine(own(folder), SPLITS).result == expected
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("SEGMV3_CACHE", str(blocked))
    assert examine(own(folder), SPLITS).result == expected


def test_training_names_all_damaged_files_in_one_line(folder):
    for i in range(6):
        path = folder / f"train/images/scene_{i}.png"
        path.write_bytes(path.read_bytes()[:-60])
    (folder / "val/labels/scene_1.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        check(open_dataset(own(folder), "train"))
    listed = ", ".join(f"scene_{i}.png" for i in range(5))
    assert str(caught.value).startswith(f"data: 6 files in 'train' cannot be used: {listed} and 1 more. The first: ")
    assert "scene_0.png is damaged (it ends too early" in str(caught.value)
    both = [problem for split in SPLITS for problem in problems_in(open_dataset(own(folder), split))]
    with pytest.raises(DataError, match="7 files in 'train' and 'val' cannot be used"):
        refuse(both, *SPLITS)


def test_twins_within_a_split_and_across(folder):
    shutil.copy(folder / "train/images/scene_1.png", folder / "train/images/scene_4.png")
    Image.open(folder / "train/images/scene_0.png").save(folder / "val/images/scene_2.bmp")  # the pixels count
    (folder / "val/images/scene_2.png").unlink()
    findings = found(folder)
    assert names(findings["train", "duplicate"]) == ["scene_4.png"]
    assert findings["train", "duplicate"]["files"][0]["text"].endswith("scene_1.png, but their labels differ")
    assert names(findings["val", "leak"]) == ["scene_2.bmp"]
    assert {finding["level"] for finding in findings.values()} == {"warning"}


def test_a_test_split_is_called_one(folder):
    shutil.copytree(folder / "val/images", folder / "test/images")
    assert source_of(own(folder)).splits(folder) == ("train", "val", "test")
    finding = found(folder, "train", "test")["test", "test split"]
    assert finding["level"] == "note" and "none of the 3 images has a label" in finding["text"]
    (folder / "test/labels").mkdir()
    for path in (folder / "test/images").iterdir():
        write_png(folder / "test/labels" / path.name, np.full((48, 64), 255, np.uint8))
    finding = found(folder, "train", "test")["test", "test split"]
    assert finding["level"] == "note" and "no pixel is labelled" in finding["text"]
    assert found(folder, "train", "val", "test")["test", "leak"]["files"][0]["partner"].endswith(
        "val/images/scene_0.png"
    )
    for path in (folder / "val/labels").iterdir():
        write_png(path, np.full((48, 64), 255, np.uint8))
    assert found(folder)["val", "void"]["level"] == "error"


def test_absent_classes_and_odd_looks(folder):
    for path in (folder / "val/labels").iterdir():
        write_png(path, np.minimum(np.array(Image.open(path)), 2))
    write_png(folder / "val/labels/scene_1.png", np.full((48, 64), 255, np.uint8))
    grey = np.array(Image.open(folder / "val/images/scene_0.png").convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "val/images/scene_0.png")
    Image.open(folder / "val/images/scene_1.png").convert("RGBA").save(folder / "val/images/scene_1.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "val/labels/scene_2.jpg")
    (folder / "val/labels/scene_2.png").unlink()
    for kind in ("images", "labels"):
        path = folder / "train" / kind / "scene_5.png"
        write_png(path, np.array(Image.open(path))[:40])
    findings = found(folder)
    assert "1 class is absent (left out of the mean IoU unless predicted): sky" in findings["val", "absent"]["text"]
    assert findings["train", "mixed sizes"]["text"] == "1 image is not 64x48 like most; 2 sizes in all"
    assert names(findings["val", "16-bit"]) == ["scene_0.png"] and names(findings["val", "mode"]) == ["scene_1.png"]
    assert names(findings["val", "void"]) == ["scene_1.png"]
    jpeg = findings.pop(("val", "no label map"))
    assert jpeg["level"] == "error" and "scene_2.jpg is a JPEG; compression changes ids" in jpeg["files"][0]["text"]
    assert {finding["level"] for finding in findings.values()} == {"warning"}


def test_two_files_of_one_name_and_a_file_in_another_citys_folder(folder, cityscapes):
    shutil.copy(folder / "train/images/scene_0.png", folder / "train/images/scene_0.bmp")
    finding = found(folder)["train", "same name"]
    assert finding["level"] == "error" and names(finding) == ["scene_0.png"]
    stray = cityscapes / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    (cityscapes / "leftImg8bit/train/bochum").mkdir()
    stray.rename(cityscapes / "leftImg8bit/train/bochum" / stray.name)
    assert names(found(cityscapes)["train", "wrong city"]) == [stray.name]


def test_illegal_pixels_are_marked_red(folder):
    path = folder / "train/labels/scene_2.png"
    pixels = np.array(Image.open(path))
    pixels[10, 20] = 99
    write_png(path, pixels)
    picture = examine(own(folder), SPLITS).picture(path)
    assert picture is not None and picture.shape == (48, 64, 3)
    red = (picture == WRONG).all(-1)
    assert red[10, 20] and red.sum() == 1


def test_wrong_places_are_one_line(folder, capsys, tmp_path):
    def says(*arguments: str) -> str:
        assert main(["data", "check", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "missing does not exist" in says(str(tmp_path / "missing"))
    assert f"did you mean {folder}?" in says(str(tmp_path))
    (folder / "classes.txt").write_text("not used beside classes.json")
    assert "neither a config file (.py) nor the folder" in says(str(folder / "classes.txt"))
    assert "found 0 images under" in says(str(folder), "--split", "tarin")
    assert "1 error and 1 warning (6 files)" in says(str(folder), "--split", "train", "tarin")
    (folder / "classes.json").write_text("{")
    assert "classes.json" in says(str(folder))


def test_names_are_text_and_never_markup(folder):
    name = "<script>[bold]&ü"
    for kind in ("images", "labels"):
        (folder / "train" / kind / "scene_0.png").rename(folder / "train" / kind / f"{name}.png")
    (folder / "train/images" / f"{name}.png").write_bytes(b"")
    assert main(["data", "check", str(folder), "--output", str(folder.parent / "out")]) == 2
    page = (folder.parent / "out/check.html").read_text()
    assert "<script" not in page and "&lt;script&gt;[bold]&amp;ü" in page

"""`segmv3 data import`: images and masks of every kind become a data set, and say what became of them."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segmv3
from segmv3.cli import main
from segmv3.config import Data
from segmv3.data.datasets import open_dataset
from segmv3.data.importing import run, write
from segmv3.data.importing.base import Content, Frame, Reader, SourceClass, legend_of
from segmv3.data.importing.names import names_in
from segmv3.data.importing.pairs import find_pairs
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.importing.splits import share_out
from segmv3.errors import ConfigError, DataError, OutputError

ROAD, SKY, CAR = (128, 64, 128), (70, 130, 180), (0, 0, 142)
PALETTE = np.array([ROAD, SKY, CAR], np.uint8)
NAMES = ("road", "sky", "car")


def label(seed: int) -> np.ndarray:
    """uint8 48 x 64 of three ids, each with its own share."""
    ids = np.zeros((48, 64), np.uint8)
    ids[:10] = 1
    ids[30:36, seed % 20 : 20] = 2
    return ids


def drawn(root: Path, store, names=("a_01", "a_02", "a_03", "b_01", "b_02", "c_01", "c_02", "c_03"), suffix=".png"):
    """Images and masks in flat folders; `store(ids)` is what Pillow saves."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        store(label(number)).save(root / "masks" / f"{name}{suffix}")
    return root


def paletted(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids, "P")
    image.putpalette(PALETTE.ravel().tolist())
    return image


def read(root: Path) -> dict[str, np.ndarray]:
    """Train ids by the name of the image, of both splits."""
    found = {}
    for split in ("train", "val"):
        dataset = open_dataset(Data(dataset="folder", root=root), split)
        for index, pair in enumerate(dataset.pairs):
            image, ids = dataset.read(index)
            assert image.shape[:2] == ids.shape
            found[pair.image.stem] = ids
    return found


def order(name: str) -> int:
    return ("a_01", "a_02", "a_03", "b_01", "b_02", "c_01", "c_02", "c_03").index(name)


@pytest.mark.parametrize(
    "store",
    [
        Image.fromarray,
        paletted,
        lambda ids: Image.fromarray(ids.astype(np.uint16) * 900),
        lambda ids: Image.fromarray(np.repeat(ids[..., None], 3, 2)),
        lambda ids: Image.fromarray(ids * 100),
        lambda ids: Image.fromarray(ids * 100).convert("LA"),
    ],
    ids=["8 bits", "palette", "16 bits", "grey as RGB", "spread out", "alpha"],
)
def test_ids_keep_their_order(tmp_path, store):
    source = drawn(tmp_path / "in", store)
    made = segmv3.import_data(source, tmp_path / "out", ImportSettings(classes=NAMES))
    assert all((ids == label(order(name))).all() for name, ids in read(tmp_path / "out").items())
    assert [(each.name, each.to, each.id, each.frames) for each in made.classes] == [
        (name, name, number, 8) for number, name in enumerate(NAMES)
    ]
    assert sum(each.share for each in made.classes) == pytest.approx(1)
    assert made.splits["train"] + made.splits["val"] == 8


def test_colours_are_found_and_shown_and_a_palette_names_them(tmp_path):
    source = drawn(tmp_path / "in", lambda ids: Image.fromarray(PALETTE[ids]))
    found = segmv3.import_data(source, tmp_path / "found").classes
    assert [each.source for each in found] == ["#804080", "#4682b4", "#00008e"], "the most frequent first"
    assert [each.to for each in found] == ["class_0", "class_1", "class_2"]
    (tmp_path / "colors.txt").write_text("0 0 142\tcar\n128 64 128\troad\n70 130 180\tVoid\n1 1 1\tunused\n")
    made = segmv3.import_data(source, tmp_path / "out", ImportSettings(palette=tmp_path / "colors.txt"))
    assert [(each.name, each.to, each.id) for each in made.classes] == [
        *(("car", "car", 0), ("road", "road", 1), ("Void", None, 255), ("unused", "unused", 2))
    ]
    new = np.array([1, 255, 0])
    assert all((ids == new[label(order(name))]).all() for name, ids in read(tmp_path / "out").items())


@pytest.mark.parametrize("shifts", [(0, 1, 2), (1, 1, 1)], ids=["differ", "other order"])
def test_palettes_that_contradict_the_ids_are_believed(tmp_path, shifts):
    turn = iter(shifts * 3)

    def shifted(ids: np.ndarray) -> Image.Image:
        shift = next(turn)
        image = Image.fromarray((ids + shift) % 3, "P")
        image.putpalette(np.roll(PALETTE, shift, 0).ravel().tolist())
        return image

    source = drawn(tmp_path / "in", shifted)
    entries = [{"id": i, "name": name, "rgb": PALETTE[i].tolist()} for i, name in enumerate(NAMES)]
    (source / "classes.json").write_text(json.dumps({"classes": entries}))
    segmv3.import_data(source, tmp_path / "out")
    assert all((ids == label(order(name))).all() for name, ids in read(tmp_path / "out").items())


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("classes", [("road",), ("other", "road")])
def test_binary_masks_are_background_and_what_is_named(tmp_path, bits, classes):
    source = drawn(
        tmp_path / "in", lambda ids: Image.fromarray((ids > 0).astype(np.uint8) * 255).convert({1: "1", 8: "L"}[bits])
    )
    made = segmv3.import_data(source, tmp_path / "out", ImportSettings(classes=classes))
    assert [each.to for each in made.classes] == [*(classes if len(classes) > 1 else ("background", "road"))]
    assert all((ids == (label(order(name)) > 0)).all() for name, ids in read(tmp_path / "out").items())
    assert main(["data", "check", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("declared", ['{"classes": [{"id": 0, "name": "other"}, {"id": 255, "name": "road"}]}', None])
def test_masks_of_255_that_training_refuses_are_mended_whole_splits_and_all(tmp_path, declared, capsys):
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        drawn(tmp_path / "in" / split, lambda ids: Image.fromarray((ids > 1).astype(np.uint8) * 255), names)
        (tmp_path / "in" / split / "masks").rename(tmp_path / "in" / split / "labels")
    name = "classes.json" if declared else "classes.txt"
    (tmp_path / "in" / name).write_text(declared or "other\nroad\n")
    assert main(["data", "check", str(tmp_path / "in")]) == 2
    told = capsys.readouterr()
    assert declared or "segmv3 data import" in told.out + told.err
    made = segmv3.import_data(tmp_path / "in", tmp_path / "out")
    assert made.splits == {"train": 2, "val": 1}
    assert [(each.source, each.id) for each in made.classes] == [("0", 0), ("255", 1)]
    assert set(np.unique(read(tmp_path / "out")["a"])) == {0, 1}


def test_colours_of_compression_are_refused_with_counts_and_snapped_on_demand(tmp_path):
    source = drawn(tmp_path / "in", lambda ids: Image.fromarray(PALETTE[ids]), suffix=".jpg")
    with pytest.raises(DataError, match=r"more than 64 classes that nobody names: #\w{6} \([\d,]+ pixels in 8 masks\)"):
        segmv3.import_data(source, tmp_path / "out")
    rows = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, PALETTE.tolist(), strict=True))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\n" + rows)
    settings = ImportSettings(palette=tmp_path / "class_dict.csv")
    with pytest.raises(DataError, match="8 masks are JPEGs"):
        segmv3.import_data(source, tmp_path / "out", settings)
    made = segmv3.import_data(source, tmp_path / "out", ImportSettings(palette=settings.palette, snap=True))
    said = next(line for line in made.said if "took the nearest (--snap)" in line)
    far, near = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:pixels|more)", said))
    masks = [np.array(Image.open(file)).astype(int) for file in source.rglob("*.jpg") if "masks" in str(file)]
    off = np.concatenate([abs(mask[..., None, :] - PALETTE).max(-1).min(-1).ravel() for mask in masks])
    assert (far, near) == ((off > 16).sum(), ((off > 0) & (off <= 16)).sum()) and 0 < far < near
    wrong = [np.mean(ids != label(order(name))) for name, ids in read(tmp_path / "out").items()]
    assert max(wrong) < 0.02


def test_more_colours_than_names_are_refused_in_one_line(tmp_path, capsys):
    source = drawn(tmp_path / "in", lambda ids: Image.fromarray(PALETTE[ids]))
    assert main(["data", "import", str(source), str(tmp_path / "out"), "--classes", "road", "sky"]) == 2
    told = capsys.readouterr().err
    assert (
        told.startswith("data: the masks hold 3 colours and --classes has 2 names: #804080 (") and told.count("\n") == 1
    )
    (tmp_path / "p.txt").write_text("road 128 64 128\nsky 70 130 180")
    assert main(["data", "import", str(source), str(tmp_path / "out"), "--palette", str(tmp_path / "p.txt")]) == 2
    assert "1 colours that" in (told := capsys.readouterr().err) and "#00008e" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "p.txt"], "nothing half written"


@pytest.mark.parametrize(
    ("image", "mask", "name", "split"),
    [
        ("images/a.jpg", "labels/a.png", "a", ""),
        ("images/a.jpg", "annotations/a_mask.png", "a", ""),
        ("img/x/a.jpg", "gt/x/a.png", "x/a", ""),
        ("train/0001TP_006690.png", "trainannot/0001TP_006690.png", "0001TP_006690", "train"),
        ("701_StillsRaw_full/a_1.png", "LabeledApproved_full/a_1_L.png", "701_StillsRaw_full/a_1", ""),
        ("images_prepped_train/a.png", "annotations_prepped_train/a.png", "prepped/a", "train"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png", "a", ""),
        ("valid/a_jpg.rf.12.jpg", "valid/a_jpg.rf.12_mask.png", "a_jpg.rf.12", "val"),
        ("a.jpg", "a.png", "a", ""),
        ("image_7.png", "mask_7.png", "image_7", ""),
        ("images/test_drive_3/a.jpg", "masks/test_drive_3/a.png", "test_drive_3/a", ""),
    ],
)
def test_masks_are_found_under_their_usual_names(tmp_path, image, mask, name, split):
    for path in (image, mask):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / path)
    (pair,) = find_pairs(tmp_path).pairs
    assert (pair.image, pair.mask, pair.name, pair.split) == (tmp_path / image, tmp_path / mask, name, split)


def test_two_masks_of_one_image_are_refused(tmp_path):
    for path in ("images/a.jpg", "labels/a_labelIds.png", "labels/a_labelTrainIds.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / path)
    with pytest.raises(DataError, match=r"a_labelIds.png and .*a_labelTrainIds.png could both be masks of .*a\.jpg"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("64 128 64\tAnimal\n192 0 128  Arch", ("Animal", None, (64, 128, 64))),
        ("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::", ("background", None, (0, 0, 0))),
        ("name,r,g,b\ntraffic light,1,2,3", ("traffic light", None, (1, 2, 3))),
        ("7, road, 128, 64, 128\n8, sky, 1, 2, 3", ("road", 7, (128, 64, 128))),
        ("road\nsky 2", ("road", None, None)),
        ("3 road\n4 sky", ("road", 3, None)),
    ],
)
def test_files_of_names_and_colours_are_read_as_people_write_them(tmp_path, text, first):
    (tmp_path / "names.txt").write_text(text)
    named = names_in(tmp_path / "names.txt")[0]
    assert (named.name, named.id, named.rgb) == first


# --- splits ---


def shared(names, **settings):
    frames = [Frame(Path(f"{name}.jpg"), name, Path(f"{name}.png")) for name in names]
    found = share_out(frames, ImportSettings(**settings))
    return {split: [frame.name for frame in own] for split, own in found.splits.items()}, found


def test_whole_drives_are_drawn_and_the_seed_says_which():
    names = [f"{drive}_f{number:05}" for drive in ("0001TP", "0006R0", "0016E5", "Seq05") for number in range(20)]
    draws = set()
    for seed in range(8):
        splits, found = shared(names, seed=seed)
        drives = {split: {name.split("_")[0] for name in own} for split, own in splits.items()}
        assert not drives["train"] & drives["val"] and len(drives["val"]) == 1
        assert shared(names, seed=seed)[0] == splits and "4 drives by name prefix" in found.said[0]
        draws |= drives["val"]
    assert len(draws) > 1


def test_one_clip_is_split_in_time_with_a_gap_that_is_told():
    splits, found = shared([f"frame_{number}" for number in range(100)])
    assert splits["train"] == [f"frame_{number}" for number in range(75)]
    assert splits["val"] == [f"frame_{number}" for number in range(80, 100)], "10 comes behind 9"
    assert found.left_out == ("5 frames between the splits",)
    both, _ = shared([f"{number:04}" for number in range(100)], test=0.2)
    assert (both["train"][-1], both["val"][0], both["val"][-1], both["test"][0]) == ("0049", "0055", "0074", "0080")


def test_a_folder_for_each_frame_is_no_drive():
    splits, found = shared([f"{drive}_{number}_json/img" for drive in "abc" for number in range(9)])
    assert len({name[0] for name in splits["val"]}) == 1 and len(splits["val"]) == 9
    assert "3 drives by name prefix" in found.said[0]


def test_seconds_are_no_drives():
    splits, found = shared([f"16058827{second}_{frame:06}" for second in range(10, 30) for frame in range(15)])
    assert max(splits["train"]) < min(splits["val"]) and found.left_out


def test_a_split_that_would_leak_is_refused_and_frames_are_split_only_when_asked():
    names = [f"clip_{number}" for number in range(4)]
    with pytest.raises(DataError, match="4 frames: any split would put neighbouring frames on both sides"):
        shared(names)
    assert shared(names, val=0.0)[0] == {"train": names}
    splits, found = shared(names, split_by="frames", val=0.25)
    assert len(splits["val"]) == 1 and "neighbours of one drive may be on both sides" in found.said[0]
    with pytest.raises(ConfigError, match="no regular expression"):
        shared(names, drive="(")
    with pytest.raises(DataError, match=r"finds nothing in 4 names \(first: clip_0\)"):
        shared(names, drive="drive")


def test_the_splits_of_the_source_are_kept_and_what_they_share_is_told():
    frames = [Frame(Path(f"{s}{i}.jpg"), f"d_{i}", Path("x"), split=s) for s in ("train", "test") for i in range(3)]
    frames.append(Frame(Path("loose.jpg"), "loose", Path("x")))
    found = share_out(frames, ImportSettings())
    assert {split: len(own) for split, own in found.splits.items()} == {"train": 3, "test": 3}
    assert any("drive by name prefix in both train and test" in line for line in found.said)
    assert found.left_out == ("1 frame in no split (first: loose)",)


# --- what is written ---


def test_what_is_left_out_is_counted_and_named(tmp_path):
    source = drawn(tmp_path / "in", Image.fromarray)
    (source / "masks/a_02.png").unlink()
    (source / "images/c_03.jpg").unlink()
    (source / "images/note.gif").write_bytes(b"GIF89a")
    made = segmv3.import_data(source, tmp_path / "out", ImportSettings(classes=NAMES))
    assert sum(made.splits.values()) == 6
    text = "\n".join(made.left_out)
    assert "1 image without a label (first: a_02)" in text
    assert "1 mask without an image (first: " in text and "c_03.png" in text and "1 .gif" in text
    assert json.loads((tmp_path / "out/import.json").read_text())["left_out"] == list(made.left_out)


def test_the_source_is_never_touched_and_links_survive_a_move_of_both(tmp_path):
    source = drawn(tmp_path / "all/in", Image.fromarray)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_nlink) for path in source.rglob("*")}
    segmv3.import_data(source, tmp_path / "all/deep/out", ImportSettings(classes=NAMES))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_nlink) for path in source.rglob("*")} == before
    (tmp_path / "all").rename(tmp_path / "elsewhere")
    assert len(read(tmp_path / "elsewhere/deep/out")) == 8


def test_without_links_there_are_hard_links_and_copies(tmp_path, monkeypatch):
    source = drawn(tmp_path / "in", Image.fromarray)

    def none(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", none)
    made = segmv3.import_data(source, tmp_path / "hard", ImportSettings(classes=NAMES))
    assert any("hard links" in line for line in made.said)
    assert next((tmp_path / "hard/images").rglob("*.jpg")).stat().st_nlink == 2
    monkeypatch.setattr(os, "link", none)
    with pytest.raises(OutputError, match="takes no links .* --copy copies the images"):
        segmv3.import_data(source, tmp_path / "out", ImportSettings(classes=NAMES))
    segmv3.import_data(source, tmp_path / "out", ImportSettings(classes=NAMES, copy=True))
    assert len(read(tmp_path / "out")) == 8 and not next((tmp_path / "out/images").rglob("*.jpg")).is_symlink()


def test_an_interrupted_import_leaves_nothing(tmp_path, monkeypatch):
    source = drawn(tmp_path / "in", lambda ids: Image.fromarray(PALETTE[ids]))
    calls = []

    def stop(path: Path, pixels: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(path, pixels)

    real = write.write_png
    monkeypatch.setattr(write, "write_png", stop)
    with pytest.raises(KeyboardInterrupt):
        segmv3.import_data(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    monkeypatch.undo()
    segmv3.import_data(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.json",
        "images",
        "import.json",
        "labels",
    ]


def test_two_imports_to_one_place_do_not_mix(tmp_path):
    source = drawn(tmp_path / "in", Image.fromarray)
    settings = ImportSettings(classes=NAMES)
    with pytest.raises(OutputError, match="has come into being meanwhile"), write.staging(tmp_path / "out"):
        segmv3.import_data(source, tmp_path / "out", settings)
    assert len(read(tmp_path / "out")) == 8 and sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_setting_that_the_kind_of_source_has_no_use_for_is_refused(tmp_path):
    source = drawn(tmp_path / "in", Image.fromarray)
    with pytest.raises(ConfigError, match="read as masks, which has no use for --background; leave it out"):
        segmv3.import_data(source, tmp_path / "out", ImportSettings(background="road"))


def test_refusals_are_one_line_before_anything_is_written(tmp_path, capsys):
    source = drawn(tmp_path / "in", Image.fromarray)
    empty = tmp_path / "empty"
    empty.mkdir()
    small = drawn(tmp_path / "small", lambda ids: Image.fromarray(ids[::2, ::2]))
    broken = drawn(tmp_path / "broken", Image.fromarray)
    (broken / "images/a_01.jpg").write_bytes((broken / "images/a_01.jpg").read_bytes()[:300])
    other = drawn(tmp_path / "other", Image.fromarray)
    for path in (other / "masks").iterdir():
        path.rename(path.with_name(f"q{path.name}"))
    there = sorted(tmp_path.rglob("*"))
    for arguments, part in (
        ([source, "out", "--kind", "nope"], "--kind is nope; there are "),
        ([tmp_path / "no", "out"], "no does not exist"),
        ([empty, "out"], "is of no kind that is known; looked for "),
        ([source, source / "out"], "which is only read; choose another folder"),
        ([source, "empty"], "exists; name a new folder"),
        ([small, "out"], "8 files cannot be used; the first: "),
        ([broken, "out"], "1 file cannot be used: "),
        ([other, "out"], "8 images and 8 masks in masks, and no two of one name (first: a_01.jpg and qa_01.png)"),
        ([source, "out", "--val", "1.5"], "--val and --test: are shares"),
        ([source, "out", "--classes", "a", "b", "c", "--palette", "x.txt"], "give one of them"),
        ([source, "out", "--classes", "a", "b\x1b[0m", "c"], "U+001B"),
    ):
        words = [str(tmp_path / word) if word in ("out", "empty") else str(word) for word in arguments]
        assert main(["data", "import", *words]) == 2
        told = capsys.readouterr().err
        assert part in told and told.count("\n") == 1, told
    assert sorted(tmp_path.rglob("*")) == there


def test_flat_folders_given_to_check_and_train_name_the_import(tmp_path, config, capsys):
    source = drawn(tmp_path / "in", Image.fromarray)
    assert main(["data", "check", str(source)]) == 2
    with pytest.raises(DataError, match=f"segmv3 data import {source} NEW makes a data set"):
        open_dataset(Data(dataset="folder", root=source), "train")
    (source / "classes.txt").write_text("\n".join(NAMES))
    with pytest.raises(DataError, match=f"segmv3 data import {source} NEW makes a data set"):
        open_dataset(Data(dataset="folder", root=source), "train")
    assert f"segmv3 data import {source} NEW" in capsys.readouterr().err


def test_the_command_says_what_became_of_each_class(tmp_path, capsys):
    source = drawn(tmp_path / "in", Image.fromarray)
    words = ["--classes", "road", "[sky]", "void"]
    assert main(["data", "import", str(source), str(tmp_path / "out"), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "masks: 8 images with masks in masks"
    assert any(line.split() == ["1", "[sky]", "[sky]", "1", "8", "20.83%"] for line in lines)
    assert any(line.split()[:4] == ["2", "void", "ignored", "255"] for line in lines)
    assert "Next: segmv3 data check" in lines[-1]


# --- the contract for other readers ---


class Polygons(Reader):
    name = "polygons"
    looks_for = "a file called polygons"

    def look(self, source, settings):
        return "1 file" if source.is_file() else None

    def read(self, source, settings, tell):
        sources = [SourceClass(0, "lane", "road"), SourceClass(1, "street", "road"), SourceClass(9, "cat", "animal")]
        frames = [
            Frame(source.parent / f"in/images/a_0{i}.jpg", f"drive/{i}", label_, split=split)
            for i, label_, split in ((1, self.label, "train"), (2, self.label, "val"), (3, None, "val"))
        ]
        return Content(legend_of(sources, settings, source), tuple(frames))

    def label(self) -> np.ndarray:
        ids = np.full((48, 64), 255, np.uint8)
        ids[0], ids[1], ids[2] = 0, 1, self.value
        return ids

    value = 9


def test_a_reader_gives_labels_as_functions_and_classes_that_become_one(tmp_path, monkeypatch):
    drawn(tmp_path / "in", Image.fromarray)
    (tmp_path / "polygons").touch()
    monkeypatch.setattr(run, "READERS", (Polygons(),))
    made = segmv3.import_data(tmp_path / "polygons", tmp_path / "out")
    assert [(each.name, each.to, each.id) for each in made.classes] == [
        *(("lane", "road", 0), ("street", "road", 0), ("cat", "animal", 1), ("nothing", None, 255))
    ]
    assert made.left_out == ("1 image without a label (first: drive/3)",)
    dataset = open_dataset(Data(dataset="folder", root=tmp_path / "out"), "train")
    assert dataset.read(0)[1][:4, 0].tolist() == [0, 0, 1, 255] and dataset.classes.names == ("road", "animal")
    monkeypatch.setattr(Polygons, "value", 7)
    with pytest.raises(DataError, match=r"values that no class has: 7 \(2 frames, 128 pixels\)"):
        segmv3.import_data(tmp_path / "polygons", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../b"])
def test_names_of_frames_stay_in_the_output(tmp_path, monkeypatch, name):
    drawn(tmp_path / "in", Image.fromarray)
    (tmp_path / "polygons").touch()
    reader = Polygons()
    content = reader.read(tmp_path / "polygons", ImportSettings(), lambda *_: None)
    frames = (replace(content.frames[0], name=name), *content.frames[1:])
    monkeypatch.setattr(Polygons, "read", lambda *_: replace(content, frames=frames))
    monkeypatch.setattr(run, "READERS", (reader,))
    with pytest.raises(DataError, match="which no file of the data set can be called"):
        segmv3.import_data(tmp_path / "polygons", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "polygons"]


def test_a_palette_of_greys_goes_before_the_order_of_names(tmp_path):
    source = drawn(tmp_path / "in", lambda ids: Image.fromarray((ids > 0).astype(np.uint8) * 255))
    (source / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nroad:255,255,255::\nother:0,0,0::\n")
    made = segmv3.import_data(source, tmp_path / "out")
    assert [(each.source, each.to) for each in made.classes] == [("#ffffff", "road"), ("#000000", "other")]
    assert all((ids == (label(order(name)) == 0)).all() for name, ids in read(tmp_path / "out").items())

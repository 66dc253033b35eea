"""Street sets as their archives unpack, as small trees of made-up pictures with the archives' file names."""

import csv
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers import labels as city
from PIL import Image

from segmv3.data.datasets import open_dataset
from segmv3.data.importing.archives import StreetSet, street_sets
from segmv3.data.importing.base import Content
from segmv3.data.importing.readers import READERS
from segmv3.data.importing.run import import_data, reader_of
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.settings import Data
from segmv3.errors import DataError
from segmv3.images import UInt8Array, read_ids, write_png
from segmv3.labels import IGNORE, cityscapes_classes

SIZE = (6, 8)
IDS = np.zeros(SIZE, np.uint8)
IDS[:3, 4:], IDS[3:, :4], IDS[3:, 4:] = 1, 2, 3
"""Four quarters: 0, 1, 2 and 3."""


def rows(table: str) -> list[dict[str, str]]:
    text = files("segmv3.data.importing").joinpath("sets", table).read_text()
    return list(csv.DictReader(text.splitlines()))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)


def quarters(path: Path, values: list[int]) -> None:
    """A label of four ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.array(values, np.uint8)[IDS])


def palette(path: Path, values: list[int]) -> None:
    """The same, with a palette, as Mapillary has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8)[IDS], "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def colors(path: Path, values: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.array([list(bytes.fromhex(value[1:])) for value in values], np.uint8)
    write_png(path, rgb[IDS])


# ---- trees: what each returns is the four classes of every label ----


def bdd100k(root: Path) -> list[str | None]:
    for split, name in (("train", "0004a4c0-d4dff0ad"), ("val", "7d06fefd-f7be05a6"), ("test", "ac6d4f42-00000000")):
        picture(root / f"images/10k/{split}/{name}.jpg")
        if split != "test":
            quarters(root / f"labels/sem_seg/masks/{split}/{name}.png", [0, 13, 10, 255])
            colors(root / f"labels/sem_seg/colormaps/{split}/{name}.png", ["#804080"] * 4)
    return ["road", "car", "sky", None]


def bdd100k_of_2018(root: Path) -> list[str | None]:
    for split in ("train", "val"):
        picture(root / f"seg/images/{split}/0004a4c0-{split}.jpg")
        quarters(root / f"seg/labels/{split}/0004a4c0-{split}_train_id.png", [0, 13, 10, 255])
    return ["road", "car", "sky", None]


def kitti(root: Path) -> list[str | None]:
    for number in range(3):
        picture(root / f"training/image_2/{number:06d}_10.png")
        picture(root / f"testing/image_2/{number:06d}_10.png")
        quarters(root / f"training/semantic/{number:06d}_10.png", [7, 26, 23, 4])
        picture(root / f"training/semantic_rgb/{number:06d}_10.png")
        Image.fromarray(np.zeros(SIZE, np.uint16)).save(_made(root / f"training/instance/{number:06d}_10.png"))
    return ["road", "car", "sky", None]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def mapillary(root: Path, version: str, folder: str, values: list[int]) -> None:
    for split in ("training", "validation", "testing"):
        picture(root / split / f"images/0035fkbjWljhaftpVM37-{split[0]}.jpg")
        if split != "testing":
            palette(root / split / folder / f"0035fkbjWljhaftpVM37-{split[0]}.png", values)
            Image.fromarray(np.zeros(SIZE, np.uint16)).save(
                _made(root / split / folder.replace("labels", "instances") / f"0035fkbjWljhaftpVM37-{split[0]}.png")
            )
    table = [{"name": row["name"], "color": [1, 2, 3]} for row in rows(f"mapillary-{version}.csv")]
    (root / f"config_{version}.json").write_text(json.dumps({"labels": table}))


def mapillary_2(root: Path) -> list[str | None]:
    mapillary(root, "v2.0", "v2.0/labels", [21, 108, 90, 123])
    return ["road", "car", "traffic light", None]


def mapillary_1(root: Path) -> list[str | None]:
    mapillary(root, "v1.2", "v1.2/labels", [13, 55, 24, 65])
    return ["road", "car", "road", None]


def mapillary_of_2017(root: Path) -> list[str | None]:
    mapillary(root, "v1.2", "labels", [13, 55, 24, 65])
    return ["road", "car", "road", None]


def acdc(root: Path) -> list[str | None]:
    for condition, drive in (("fog", "GOPR0475"), ("night", "GOPR0351"), ("rain", "GP020400"), ("snow", "GOPR0122")):
        for split in ("train", "val", "test", "train_ref"):
            clip = drive if split == "train" else f"{drive[:-1]}{'vtr'.index(split[0]) + 6}"
            name = f"{condition}/{split}/{clip}/{clip}_frame_000041"
            picture(root / f"rgb_anon/{name}_{'rgb_ref_anon' if 'ref' in split else 'rgb_anon'}.png")
            if split in ("train", "val"):
                quarters(root / f"gt/{name}_gt_labelIds.png", [7, 26, 23, 4])
                quarters(root / f"gt/{name}_gt_labelTrainIds.png", [0, 13, 10, 255])
                quarters(root / f"gt/{name}_gt_invIds.png", [0, 0, 0, 0])
    return ["road", "car", "sky", None]


def idd(root: Path) -> list[str | None]:
    corners = [[0, 0], [7, 0], [7, 5], [0, 5]]
    objects: list[dict[str, Any]] = [
        {"label": "sky", "polygon": corners, "deleted": 0},
        {"label": "cargroup", "polygon": [[4, 0], [7, 0], [7, 2], [4, 2]], "deleted": 0},
        {"label": "road", "polygon": [[0, 0], [3, 0], [3, 2], [0, 2]], "draw": True},
        {"label": "person", "polygon": corners, "deleted": 1},
        {"label": "autorickshaw", "polygon": [[4, 3], [7, 3], [7, 5], [4, 5]]},
    ]
    text = json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects})
    for split, drive, suffix in (
        ("train", "0", "png"),
        ("train", "201", "jpg"),
        ("val", "119", "png"),
        ("test", "5", "png"),
    ):
        picture(root / f"leftImg8bit/{split}/{drive}/frame0029_leftImg8bit.{suffix}")
        if split != "test":
            _made(root / f"gtFine/{split}/{drive}/frame0029_gtFine_polygons.json").write_text(text)
    return ["road", "car", "sky", None]


def idd_level3(root: Path) -> list[str | None]:
    for split in ("train", "val"):
        picture(root / f"leftImg8bit/{split}/{len(split)}/024541_leftImg8bit.png")
        quarters(root / f"gtFine/{split}/{len(split)}/024541_gtFine_labellevel3Ids.png", [0, 9, 25, 255])
    return ["road", "car", "sky", None]


def a2d2(root: Path) -> list[str | None]:
    for drive, camera in (("20180807_145028", "front_center"), ("20181204_170238", "side_left")):
        stamp, side = drive.replace("_", ""), camera.replace("_", "")
        for number in (91, 135):
            picture(root / f"{drive}/camera/cam_{camera}/{stamp}_camera_{side}_{number:09d}.png")
            colors(
                root / f"{drive}/label/cam_{camera}/{stamp}_label_{side}_{number:09d}.png",
                ["#ff00ff", "#c80000", "#87ceff", "#48d1cc"],
            )
    (root / "class_list.json").write_text(json.dumps({"#ff00ff": "RD normal street"}))
    return ["road", "car", "sky", None]


def comma10k(root: Path) -> list[str | None]:
    for folder, name in (
        ("", "0000_0085e9e41513078a_2018-08-19--13-26-08_11_864"),
        ("", "0001_a23b0de0bc12dcba_2018-06-24--00-29-19_17_79"),
        ("2", "00000_e_20f59690c1da9379_2021-02-08--09-26-00_7_646"),
    ):
        picture(root / f"imgs{folder}/{name}.png")
        colors(root / f"masks{folder}/{name}.png", ["#402020", "#ff0000", "#808060", "#00ff66"])
    return ["road", "lane markings", "undrivable", "movable"]


TREES: dict[str, tuple[Callable[[Path], list[str | None]], str, dict[str, int]]] = {
    "bdd100k": (bdd100k, "bdd100k", {"train": 1, "val": 1, "test": 0}),
    "bdd100k of 2018": (bdd100k_of_2018, "bdd100k", {"train": 1, "val": 1}),
    "kitti": (kitti, "kitti", {"train": 3, "test": 0}),
    "mapillary 2.0": (mapillary_2, "mapillary-v2.0", {"train": 1, "val": 1, "test": 0}),
    "mapillary 1.2": (mapillary_1, "mapillary-v1.2", {"train": 1, "val": 1, "test": 0}),
    "mapillary of 2017": (mapillary_of_2017, "mapillary-v1.2", {"train": 1, "val": 1, "test": 0}),
    "acdc": (acdc, "acdc", {"train": 4, "val": 4, "test": 0}),
    "idd": (idd, "idd", {"train": 2, "val": 1, "test": 0}),
    "idd, level 3": (idd_level3, "idd-level3", {"train": 1, "val": 1}),
    "a2d2": (a2d2, "a2d2", {"": 4}),
    "comma10k": (comma10k, "comma10k", {"train": 2, "val": 1}),
}


def content(root: Path, **settings: Any) -> Content:
    chosen = ImportSettings(**settings)
    return reader_of(root, chosen)[0].read(root, chosen, lambda what, done, total: None)


def stored(label: Any) -> UInt8Array:
    return read_ids(label) if isinstance(label, Path) else label()


def names_at_quarters(found: Content) -> list[list[str | None]]:
    """Of each labelled frame, the class of the middle of each quarter."""
    table = {each.value: each.to for each in found.legend.sources} | {IGNORE: None}
    maps = [stored(frame.label) for frame in found.frames if frame.label is not None]
    return [[table[int(label[y, x])] for y, x in ((1, 1), (1, 6), (4, 1), (4, 6))] for label in maps]


@pytest.mark.parametrize("tree", TREES)
def test_an_archive_is_recognised_and_its_classes_and_splits_are_kept(tmp_path: Path, tree: str) -> None:
    write, kind, splits = TREES[tree]
    expected = write(tmp_path)
    assert reader_of(tmp_path, ImportSettings())[0].name == kind
    found = content(tmp_path)
    assert all(each == expected for each in names_at_quarters(found))
    labelled = {split: sum(f.split == split and f.label is not None for f in found.frames) for split in splits}
    assert labelled == splits and {frame.split for frame in found.frames} == set(splits)
    assert len({frame.name for frame in found.frames if frame.label}) == sum(splits.values())
    if kind != "comma10k":
        assert found.legend.classes == cityscapes_classes()


def test_drives_are_those_of_the_folders(tmp_path: Path) -> None:
    for name in ("idd", "acdc", "a2d2"):
        TREES[name][0](tmp_path / name)
    assert {frame.drive for frame in content(tmp_path / "idd").frames} == {"0", "201", "119", "5"}
    assert {frame.drive for frame in content(tmp_path / "a2d2").frames} == {"20180807_145028", "20181204_170238"}
    found = content(tmp_path / "acdc")
    trained = {frame.drive for frame in found.frames if frame.split == "train"}
    assert trained == {"GOPR0475", "GOPR0351", "GP020400", "GOPR0122"}
    assert any("other images of the archive" in line for line in found.left_out)  # reference frames, inverted labels


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (
            "mapillary 2.0",
            ["construction--flat--road", "object--vehicle--car", "object--traffic-light--general-single", None],
        ),
        ("mapillary 1.2", ["construction--flat--road", "object--vehicle--car", "marking--general", None]),
        ("idd", ["road", "car", "sky", "autorickshaw"]),
        ("a2d2", ["RD normal street", "Car", "Sky", "Ego car"]),
    ],
)
def test_native_keeps_the_classes_of_the_set(tmp_path: Path, tree: str, names: list[str | None]) -> None:
    TREES[tree][0](tmp_path)
    assert all(each == names for each in names_at_quarters(content(tmp_path, native=True)))


def test_the_number_of_own_classes_is_the_published_one(tmp_path: Path) -> None:
    for tree, count in (("idd", 26), ("idd, level 3", 26), ("a2d2", 36), ("mapillary 1.2", 65), ("mapillary 2.0", 123)):
        TREES[tree][0](tmp_path / tree)
        assert len(content(tmp_path / tree, native=True).legend.classes) == count


def test_the_tables_agree_with_cityscapes_and_have_each_id_and_colour_once() -> None:
    for table in {reader.table for reader in street_sets()}:
        ids = [int(row["id"]) for row in rows(table)]
        assert ids == list(range(len(ids)))
        assert {row["cityscapes"] for row in rows(table)} <= {"", *cityscapes_classes().names}
    for row in rows("cityscapes-ids.csv"):
        label = city.id2label[int(row["id"])]
        assert row["name"] == label.name and row["rgb"] == "#{:02x}{:02x}{:02x}".format(*label.color)
        assert row["cityscapes"] == (label.name if label.trainId < 19 else "")
    assert [row["name"] for row in rows("cityscapes-train-ids.csv")] == list(cityscapes_classes().names)
    for table in ("a2d2.csv", "comma10k.csv"):
        shown = [row["rgb"] for row in rows(table)]
        assert len(set(shown)) == len(shown)


def test_a_folder_of_two_versions_is_read_as_the_kind_that_is_named(tmp_path: Path) -> None:
    mapillary_1(tmp_path)
    mapillary_2(tmp_path)
    assert content(tmp_path).said == (
        "the classes of Mapillary Vistas v2.0 became the 19 of Cityscapes; --native keeps those of the set",
    )
    assert names_at_quarters(content(tmp_path, kind="mapillary-v1.2"))[0] == ["road", "car", "road", None]


def test_ignored_classes_are_none_of_the_19(tmp_path: Path) -> None:
    bdd100k(tmp_path)
    found = content(tmp_path, ignore=("sky",))
    assert found.legend.classes.names == tuple(name for name in cityscapes_classes().names if name != "sky")
    assert names_at_quarters(found)[0] == ["road", "car", None, None]


# ---- bad archives ----


def test_a_colour_that_no_class_has_is_told_with_its_count(tmp_path: Path) -> None:
    comma10k(tmp_path)
    mask = next((tmp_path / "masks").iterdir())
    colors(mask, ["#402020", "#ff0000", "#808061", "#00ff66"])
    frames = content(tmp_path).frames
    with pytest.raises(DataError, match=r"\.png holds 1 colours that no class has: #808061 \(12 pixels\)"):
        for frame in frames:
            stored(frame.label)


def test_another_version_of_mapillary_is_refused(tmp_path: Path) -> None:
    mapillary_2(tmp_path)
    (tmp_path / "config_v2.0.json").write_text(json.dumps({"labels": [{"name": "animal--bird"}]}))
    with pytest.raises(
        DataError, match=r"config_v2.0.json lists 1 classes that are not the 124 of Mapillary Vistas v2.0"
    ):
        content(tmp_path)
    (tmp_path / "config_v2.0.json").write_text("{")
    with pytest.raises(DataError, match=r"config_v2.0.json: is not JSON"):
        content(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "its content is a list, not an object"),
        ('{"imgHeight": 6, "imgWidth": 8}', "objects is null, not a list"),
        ('{"imgHeight": 600000, "imgWidth": 800000, "objects": []}', "the image is 800000x600000; at most"),
        (
            '{"imgHeight": 6, "imgWidth": 8, "objects": [{"label": "dragon", "polygon": [[0, 0], [1, 1]]}]}',
            "the class dragon",
        ),
        ('{"imgHeight": 6, "imgWidth": 8, "objects": [{"label": "sky", "polygon": [[0, NaN], [1, 1]]}]}', "is NaN"),
        ("[" * 100, "is not JSON"),
    ],
)
def test_polygons_that_cannot_be_drawn_name_their_file(tmp_path: Path, text: str, told: str) -> None:
    idd(tmp_path)
    next(tmp_path.rglob("gtFine/val/119/*.json")).write_text(text)
    frames = [frame for frame in content(tmp_path).frames if frame.split == "val"]
    with pytest.raises(DataError, match=r"frame0029_gtFine_polygons.json: ") as error:
        stored(frames[0].label)
    assert told in str(error.value)


def test_an_archive_without_labels_says_what_was_looked_for(tmp_path: Path) -> None:
    picture(tmp_path / "imgs/0000_0085e9e41513078a_2018-08-19--13-26-08_11_864.png")
    with pytest.raises(DataError, match=r"holds no image of comma10k with a label; looked for imgs/"):
        content(tmp_path)


@pytest.mark.parametrize("folders", [("imgs", "masks"), ("training/images", "training/labels"), ("images", "labels")])
def test_folders_of_usual_names_are_no_street_set(tmp_path: Path, folders: tuple[str, str]) -> None:
    for name in ("0001", "0002"):
        picture(tmp_path / folders[0] / f"{name}.png")
        quarters(tmp_path / folders[1] / f"{name}.png", [0, 1, 2, 3])
    assert reader_of(tmp_path, ImportSettings())[0].name == "masks"


def test_cityscapes_itself_is_not_taken_for_idd(tmp_path: Path) -> None:
    picture(tmp_path / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png")
    _made(tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json").write_text("{}")
    assert not any(reader.look(tmp_path, ImportSettings()) for reader in READERS if isinstance(reader, StreetSet))


@pytest.mark.parametrize("tree", TREES)
def test_an_archive_becomes_a_data_set_that_opens(tmp_path: Path, tree: str) -> None:
    write, kind, splits = TREES[tree]
    expected = write(tmp_path / "archive")
    before = sorted(tmp_path.rglob("*"))
    options = {"split_by": "frames"} if kind == "kitti" else {}
    made = import_data(tmp_path / "archive", tmp_path / "made", ImportSettings(**options))
    assert made.kind == kind and sum(made.splits.values()) == sum(splits.values())
    assert sorted((tmp_path / "archive").rglob("*")) == [path for path in before if path != tmp_path / "archive"]
    for split in ("train", "val"):
        dataset = open_dataset(Data(dataset="folder", root=tmp_path / "made"), split)
        for index in range(len(dataset)):
            _, label = dataset.read(index)
            middle = [int(label[y, x]) for y, x in ((1, 1), (1, 6), (4, 1), (4, 6))]
            named = [None if value == IGNORE else dataset.classes.names[value] for value in middle]
            assert named == expected

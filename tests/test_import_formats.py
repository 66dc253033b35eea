"""Annotation files of labelling tools: what they hold comes back as labels, and what predict wrote comes back whole."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segmv3.data.importing.base import Content
from segmv3.data.importing.readers import READERS
from segmv3.data.importing.regions import Brush, Polygon, Runs, coco_counts
from segmv3.data.importing.run import import_data, reader_of
from segmv3.data.importing.settings import ImportSettings
from segmv3.errors import DataError, OutputError
from segmv3.images import UInt8Array, read_ids, write_png
from segmv3.labels import IGNORE, Classes, read_classes
from segmv3.prediction import predict_source
from segmv3.prediction.contract import Found
from segmv3.prediction.shapes import brush_rle

CLASSES = Classes(("road", "traffic light", "<sky> & co"), ((128, 64, 128), (250, 170, 30), (70, 130, 180)))


def scene(seed: int, height: int = 48, width: int = 64) -> UInt8Array:
    """Blobs of three brightnesses, so that there are holes, specks and thin parts."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    image = np.digitize(cv2.GaussianBlur(noise, (0, 0), 2), [-0.08, 0.08]).astype(np.uint8) * 100
    return np.dstack([image, image, image])


def net(image: UInt8Array) -> Found:
    labels = (image[..., 0].astype(int) + 50) // 100
    return labels.astype(np.uint8), np.full(labels.shape, 204, np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in/sub").mkdir(parents=True)
    write_png(Path("in/a.png"), scene(0))
    write_png(Path("in/sub/b c+d.png"), scene(1, 33, 81))
    return tmp_path


def content(source: Path | str, **settings: Any) -> Content:
    chosen = ImportSettings(**settings)
    return reader_of(Path(source), chosen)[0].read(Path(source), chosen, lambda what, done, total: None)


def labels(found: Content) -> dict[str, UInt8Array]:
    """Train ids by name of the frame."""
    table = np.full(256, IGNORE, np.uint8)
    for each in found.legend.sources:
        table[each.value] = IGNORE if each.to is None else found.legend.classes.names.index(each.to)
    return {frame.name: table[frame.label()] for frame in found.frames if callable(frame.label)}


# ---- what predict writes ----

FILES = {"coco": "coco.json", "cvat": "cvat.zip", "label-studio": "label-studio.json"}
TRUTH = {"a": ("in/a.png", (0, 48, 64)), "sub/b c+d": ("in/sub/b c+d.png", (1, 33, 81))}


@pytest.mark.parametrize("outlines", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_what_predict_wrote_comes_back(here: Path, kind: str, outlines: bool) -> None:
    predict_source("in", net, CLASSES, Path("out"), save=[kind], polygons=outlines)
    found = content(f"out/{FILES[kind]}", images=Path("in"))
    assert found.legend.classes == CLASSES and not found.left_out
    back = labels(found)
    assert back.keys() == TRUTH.keys()
    for name, (file, drawn) in TRUTH.items():
        truth = net(scene(*drawn))[0]
        assert [frame.image for frame in found.frames if frame.name == name] == [Path(file)]
        for train_id in range(3):
            mask, expected = ((each == train_id).astype(np.uint8) for each in (back[name], truth))
            assert not far_apart(mask, expected) if outlines else np.array_equal(mask, expected)


def far_apart(one: UInt8Array, other: UInt8Array) -> bool:
    """Whether a border of one is more than a pixel away from the other's, or a part is missing."""
    reach = np.ones((3, 3), np.uint8)
    inner = cv2.erode(other, reach, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return bool(((inner > one) | (other > cv2.dilate(one, reach)) | (one > cv2.dilate(other, reach))).any())


@pytest.mark.parametrize("kind", FILES)
def test_a_region_that_is_corrected_changes_that_region_alone(here: Path, kind: str) -> None:
    predict_source("in/a.png", net, CLASSES, Path("out"), save=[kind])
    before = labels(content(f"out/{FILES[kind]}", images=Path("in")))["a"]
    EDITS[kind](Path("out"))
    found = content("out" if kind != "cvat" else "out/cvat.zip", images=Path("in"))
    expected = before.copy()
    expected[10:20, 5:30] = 1
    assert np.array_equal(labels(found)["a"], expected)


def edit_coco(out: Path) -> None:
    file = json.loads((out / "coco.json").read_text())
    ring = [5, 10, 30, 10, 30, 20, 5, 20]
    file["annotations"].append({"id": 99, "image_id": 1, "category_id": 2, "segmentation": [ring], "iscrowd": 0})
    (out / "coco.json").write_text(json.dumps(file))


def edit_cvat(out: Path) -> None:
    with zipfile.ZipFile(out / "cvat.zip") as archive:
        text = archive.read("annotations.xml").decode()
    shape = '<polygon label="traffic light" z_order="1" points="5,10;30,10;30,20;5,20"/>'
    place = text.index("<mask")  # first in the file, and above the others by its z-order
    with zipfile.ZipFile(out / "cvat.zip", "w") as archive:
        archive.writestr("annotations.xml", text[:place] + shape + text[place:])


def edit_label_studio(out: Path) -> None:
    """As it exports: the prediction stays, beside two annotations of which the last is newer, and one is cancelled."""
    tasks = json.loads((out / "label-studio.json").read_text())
    result = tasks[0]["predictions"][0]["result"]
    corners = [[100 * x / 64, 100 * y / 48] for x, y in ((5, 10), (30, 10), (30, 20), (5, 20))]
    drawn = {"points": corners, "polygonlabels": ["traffic light"]}
    size = {"original_width": 64, "original_height": 48}
    newest = [*result, {**size, "type": "polygonlabels", "value": drawn}]
    tasks[0]["annotations"] = [
        {"result": newest, "was_cancelled": False, "updated_at": "2026-02-02T10:00:00Z"},
        {"result": [], "was_cancelled": False, "updated_at": "2026-01-01T10:00:00Z"},
        {"result": [], "was_cancelled": True, "updated_at": "2026-03-03T10:00:00Z"},
    ]
    (out / "label-studio.json").write_text(json.dumps(tasks))


EDITS: dict[str, Callable[[Path], None]] = {
    "coco": edit_coco,
    "cvat": edit_cvat,
    "label-studio": edit_label_studio,
}


# ---- regions ----


@pytest.mark.parametrize("seed", range(4))
def test_a_pixel_belongs_to_the_polygon_around_its_centre(seed: int) -> None:
    from matplotlib.path import Path as Outline

    ring = np.random.default_rng(seed).uniform(-20, 70, (9, 2))
    top, left, mask = Polygon(ring).mask((40, 50))
    whole = np.zeros((40, 50), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    ys, xs = np.mgrid[:40, :50] + 0.5
    switches = np.zeros((40, 50), int)
    for (x, y), (x2, y2) in zip(ring, np.roll(ring, -1, 0), strict=True):
        crossed = (y <= ys) != (y2 <= ys)
        switches += crossed & (x + (ys - y) * (x2 - x) / (y2 - y) <= xs)
    assert np.array_equal(whole, switches % 2 == 1)
    simple = np.array([[3.2, 2.7], [44.1, 8.3], [20.6, 33.9]])
    inside = Outline(simple).contains_points(np.column_stack([xs.ravel(), ys.ravel()])).reshape(40, 50)
    top, left, mask = Polygon(simple).mask((40, 50))
    assert np.array_equal(inside[top : top + mask.shape[0], left : left + mask.shape[1]], mask)
    assert mask.sum() == inside.sum()


def test_a_polygon_outside_of_the_picture_covers_nothing() -> None:
    for ring in ([[60, 1], [70, 1], [70, 9]], [[-9, -9], [-1, -9], [-1, -1]], [[1e9, 0], [1e9, 5], [-1e9, 5]]):
        top, left, mask = Polygon(np.array(ring, float)).mask((40, 50))
        assert top + mask.shape[0] <= 40 and left + mask.shape[1] <= 50
        assert mask.sum() == (0 if ring[0][0] < 1e9 else pytest.approx(100, abs=50))


@pytest.mark.parametrize("seed", range(3))
def test_compressed_runs_are_read_as_pycocotools_writes_them(seed: int) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    mask = (scene(seed)[..., 0] > 50).astype(np.uint8)
    mask[:2, 0] = seed % 2
    packed = tools.encode(np.asfortranarray(mask))
    runs = Runs(np.array(coco_counts(packed["counts"].decode())), by_columns=True)
    assert np.array_equal(runs.mask(mask.shape)[2], mask > 0)


@pytest.mark.parametrize("text", ["é", "o", "~" * 20, "ooooooooo"])
def test_damaged_compressed_runs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="its compressed runs"):
        coco_counts(text)


def literal(mask: UInt8Array) -> bytes:
    """A brush without runs: every byte as it is, as the browser packs noise."""
    values = np.repeat(mask.ravel() * 255, 4)
    bits = f"{values.size:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    for start in range(0, values.size, 200):
        part = values[start : start + 200]
        bits += f"010{len(part) - 1:08b}" + "".join(f"{value:08b}" for value in part)
    return np.packbits(np.array([*bits], np.uint8)).tobytes()


def test_a_brush_is_read_from_runs_and_from_single_bytes() -> None:
    mask = (np.random.default_rng(0).random((7, 31)) < 0.5).astype(np.uint8)
    for data in (bytes(brush_rle(mask)), literal(mask)):
        assert np.array_equal(Brush(data).mask((7, 31))[2], mask > 0)
        for wrong in (data[:40], b"", data[:5] + b"\xff" * 200):
            with pytest.raises(ValueError, match="its brush strokes"):
                Brush(wrong).mask((7, 31))
        with pytest.raises(ValueError, match="not those of a picture of 31x8"):
            Brush(data).mask((8, 31))


# ---- each kind ----

RINGS = {"road": [2, 2, 60, 2, 60, 40, 2, 40], "traffic light": [20, 10, 30, 10, 30, 20, 20, 20]}


def expected(rest: int = IGNORE) -> UInt8Array:
    label = np.full((48, 64), rest, np.uint8)
    label[2:40, 2:60] = 0
    label[10:20, 20:30] = 1
    return label


def coco(root: Path, **changes: Any) -> dict[str, Any]:
    image = {"id": 7, "file_name": "a.png", "width": 64, "height": 48}
    regions = [
        {"id": i, "image_id": 7, "category_id": 10 * i, "segmentation": [ring], "iscrowd": 0}
        for i, ring in enumerate(RINGS.values())
    ]
    categories = [{"id": 10 * i, "name": name, "color": [i, 2, 3]} for i, name in enumerate(RINGS)]
    file = {"images": [image], "categories": categories, "annotations": regions} | changes
    (root / "instances_train2017.json").write_text(json.dumps(file))
    return file


def cvat(root: Path) -> None:
    shapes = "".join(
        f'<polygon label="{name}" z_order="{i}" points="{points(ring)}"/>'
        for i, (name, ring) in enumerate(RINGS.items())
    )
    names = "".join(f"<label><name>{name}</name><color>#0{i}0203</color></label>" for i, name in enumerate(RINGS))
    (root / "annotations.xml").write_text(
        f"<annotations><meta><job><labels>{names}</labels></job></meta>"
        f'<image id="0" name="a.png" subset="Train" width="64" height="48">{shapes}</image></annotations>'
    )


def points(ring: list[int]) -> str:
    return ";".join(f"{x}.0,{y}.0" for x, y in zip(ring[::2], ring[1::2], strict=True))


def label_studio(root: Path) -> None:
    size = {"original_width": 64, "original_height": 48, "image_rotation": 0}
    result = []
    for number, (name, ring) in enumerate(RINGS.items()):
        corners = np.reshape(ring, (-1, 2)) / (0.64, 0.48)
        value = {"points": corners.tolist(), "closed": True, ("labels" if number else "polygonlabels"): [name]}
        result.append({**size, "type": "polygon" if number else "polygonlabels", "value": value})
    task = {"id": 1, "data": {"image": "/data/upload/3/0123abcd-a.png"}, "annotations": [{"result": result}]}
    (root / "project-3.json").write_text(json.dumps([task]))


def labelme(root: Path) -> None:
    rings = [np.reshape(ring, (-1, 2)).tolist() for ring in RINGS.values()]
    shapes = [
        {"label": "road", "points": rings[0], "shape_type": "polygon", "group_id": None, "flags": {}},
        {"label": "traffic light", "points": [rings[1][0], rings[1][2]], "shape_type": "rectangle"},
    ]
    file = {"version": "5.5.0", "shapes": shapes, "imagePath": "..\\a.png", "imageHeight": 48, "imageWidth": 64}
    (root / "json").mkdir()
    (root / "json/a.json").write_text(json.dumps(file))


def yolo(root: Path) -> None:
    (root / "images/train").mkdir(parents=True)
    (root / "a.png").rename(root / "images/train/a.png")
    lines = [
        f"{i} " + " ".join(f"{value / (64, 48)[place % 2]:.8f}" for place, value in enumerate(ring))
        for i, ring in enumerate(RINGS.values())
    ]
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text("\n".join(reversed(lines)) + "\n")  # the smaller one lies above
    (root / "data.yaml").write_text("path: ../elsewhere\ntrain: images/train\nnames: {0: road, 1: traffic light}\n")


KINDS: dict[str, Callable[[Path], Any]] = {
    "coco": coco,
    "cvat": cvat,
    "label-studio": label_studio,
    "labelme": labelme,
    "yolo": yolo,
}
SPLITS = {"coco": "train", "cvat": "train", "yolo": "train"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_png(tmp_path / "a.png", scene(0))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recognised_and_read(root: Path, kind: str) -> None:
    KINDS[kind](root)
    assert reader_of(root, ImportSettings())[0].name == kind
    found = content(root)
    assert found.legend.classes.names == tuple(RINGS) and not found.left_out
    (frame,) = found.frames
    assert frame.name == "a" and frame.split == SPLITS.get(kind, "")
    assert np.array_equal(labels(found)["a"], expected())


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_no_region_covers_are_void_or_a_class_that_is_named(root: Path, kind: str) -> None:
    KINDS[kind](root)
    found = content(root, background="other")
    assert found.legend.classes.names == (*RINGS, "other")
    assert np.array_equal(labels(found)["a"], expected(2))
    assert np.array_equal(labels(content(root, background="road"))["a"], np.where(expected() == 1, 1, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_the_user_gives_say_the_order_and_must_be_all(root: Path, kind: str) -> None:
    KINDS[kind](root)
    found = content(root, classes=("traffic light", "bus", "road"))
    assert found.legend.classes.names == ("traffic light", "bus", "road")
    assert set(np.unique(labels(found)["a"])) == {0, 2, IGNORE}
    with pytest.raises(DataError, match=r"holds classes that --classes does not name: road \(1 regions\); add them"):
        content(root, classes=("traffic light", "bus"))
    found = content(root, classes=("traffic light", "bus"), ignore=("Road",))
    assert set(np.unique(labels(found)["a"])) == {0, IGNORE}


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_not_there_or_not_named_are_told(root: Path, kind: str) -> None:
    KINDS[kind](root)
    image = next(root.rglob("a.png"))
    write_png(image.with_name("other.png"), scene(0))
    assert [line for line in content(root).left_out if "1 images that no annotation names" in line]
    image.unlink()
    with pytest.raises(DataError, match=r"names 1 images and none of them lies below .*a(\.png)?\); name their folder"):
        content(root)


def test_all_kinds_are_in_the_table() -> None:
    assert [reader.name for reader in READERS if reader.name in KINDS] == [
        "coco",
        "cvat",
        "label-studio",
        "yolo",
        "labelme",
    ]


# ---- what is not taken, and what is refused ----


def test_what_is_no_region_is_counted(root: Path) -> None:
    file = coco(root)
    coco(root, annotations=[*file["annotations"], {"image_id": 7, "category_id": 0, "bbox": [1, 2, 3, 4]}])
    assert content(root).left_out == ("1 annotations without a region, boxes alone",)
    (root / "instances_train2017.json").unlink()
    cvat(root)
    text = (root / "annotations.xml").read_text()
    (root / "annotations.xml").write_text(text.replace("</image>", '<box label="road"/><tag label="x"/></image>'))
    assert len(content(root).left_out) == 2 and "1 shapes of the type box: only" in content(root).left_out[0]
    (root / "annotations.xml").unlink()
    yolo(root)
    with (root / "labels/train/a.txt").open("a") as lines:
        lines.write("1 0.5 0.5 0.1 0.1\n\n")
    assert content(root).left_out == ("1 boxes, which are no regions",)


def test_a_crowd_lies_below_and_runs_are_read(root: Path) -> None:
    file = coco(root)
    crowd = {"size": [48, 64], "counts": [0, 48 * 64]}
    coco(
        root,
        annotations=[*file["annotations"], {"image_id": 7, "category_id": 10, "segmentation": crowd, "iscrowd": 1}],
    )
    assert np.array_equal(labels(content(root))["a"], expected(1))


def test_images_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for drive in "xy":
        (tmp_path / drive).mkdir()
        write_png(tmp_path / drive / "a.png", scene(0))
    images = [{"id": i, "file_name": f"{drive}/a.png", "width": 64, "height": 48} for i, drive in enumerate("xy")]
    regions = [{"image_id": i, "category_id": i, "segmentation": [RINGS["road"]]} for i in range(2)]
    names = [{"id": i, "name": name} for i, name in enumerate(RINGS)]
    coco(tmp_path, images=images, annotations=regions, categories=names)
    found = labels(content(tmp_path))
    assert set(np.unique(found["x/a"])) == {0, IGNORE} and set(np.unique(found["y/a"])) == {1, IGNORE}
    images[1]["file_name"] = "a.png"
    coco(tmp_path, images=images, annotations=regions, categories=names)
    with pytest.raises(DataError, match=r"names the image a.png: is it .*x/a.png or .*y/a.png"):
        content(tmp_path)
    images[1]["file_name"] = "z/a.png"
    coco(tmp_path, images=images, annotations=regions, categories=names)
    assert "1 images that are not below" in content(tmp_path).left_out[0]


@pytest.mark.parametrize("way", ["../a.png", "/etc/a.png", "sub/../../a.png", "C:\\a.png", "..\\a.png"])
def test_a_way_that_leads_out_of_the_folder_is_refused(root: Path, way: str) -> None:
    coco(root, images=[{"id": 7, "file_name": way, "width": 64, "height": 48}])
    with pytest.raises(DataError, match=r"instances_train2017.json names the image .*, which leads out of"):
        content(root)


BAD_COCO: dict[str, tuple[dict[str, Any], str]] = {
    "no number": (
        {"images": [{"id": 7, "file_name": "a.png", "width": "64", "height": 48}]},
        "the width of a.png is text, not a whole",
    ),
    "no size": ({"images": [{"id": 7, "file_name": "a.png", "width": 0, "height": 48}]}, "a.png is 0x48"),
    "huge": (
        {"images": [{"id": 7, "file_name": "a.png", "width": 10**6, "height": 10**6}]},
        "a.png is 1000000x1000000; at",
    ),
    "no category": (
        {"categories": [{"id": 5, "name": "road"}]},
        "of category 0, and there is no such image or category",
    ),
    "two categories": (
        {"categories": [{"id": 0, "name": "road"}, {"id": 0, "name": "car"}]},
        "the categories road and car have the same id 0",
    ),
    "two images": (
        {"images": [{"id": 7, "file_name": name, "width": 64, "height": 48} for name in ("a.png", "b.png")]},
        "the images a.png and b.png have the same id 7",
    ),
    "turned runs": (
        {"annotations": [{"image_id": 7, "category_id": 0, "segmentation": {"size": [64, 48], "counts": [3072]}}]},
        "has runs of another size",
    ),
    "no list": ({"annotations": {}}, "annotations is an object, not a list"),
    "odd": (
        {"annotations": [{"image_id": 7, "category_id": 0, "segmentation": [[1, 2, 3, 4, 5]]}]},
        "has 5 numbers; a polygon",
    ),
    "nan": (
        {"annotations": [{"image_id": 7, "category_id": 0, "segmentation": [[1, 2, 3, 4, 5, 1e999]]}]},
        "is Infinity",
    ),
    "text": (
        {"annotations": [{"image_id": 7, "category_id": 0, "segmentation": [["1", 2, 3, 4, 5, 6]]}]},
        "is text, not a number",
    ),
    "deep": ({"annotations": [{"image_id": 7, "category_id": 0, "segmentation": [[[[1, 2]]]]}]}, "not"),
    "counts": (
        {"annotations": [{"image_id": 7, "category_id": 0, "segmentation": {"counts": "~~~~"}}]},
        "compressed runs",
    ),
    "nothing": ({"annotations": []}, "holds no region of a class"),
    "unseen name": ({"categories": [{"id": 0, "name": "ro\u202ead"}, {"id": 10, "name": "x"}]}, "U+202E"),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_a_bad_coco_file_is_told_in_a_line_with_its_name(root: Path, case: str) -> None:
    changes, told = BAD_COCO[case]
    coco(root, **changes)
    with pytest.raises(DataError) as error:
        content(root)
    line = str(error.value)
    assert str(root) in line and told in line and line.isprintable()


@pytest.mark.parametrize(
    "counts",
    [
        [1, 2],
        [],
        [-1, 48 * 64 + 1],
        [2**62] * 3 + [2**62 + 48 * 64],
        [2**63, 2**63 + 48 * 64],
        [2**64, 48 * 64 - 2**64],
    ],
)
def test_runs_that_do_not_fill_the_picture_are_refused_when_drawn(root: Path, counts: list[int]) -> None:
    coco(root, annotations=[{"image_id": 7, "category_id": 0, "segmentation": {"size": [48, 64], "counts": counts}}])
    with pytest.raises(
        DataError, match=r"instances_train2017.json: a.png: region 1: its runs do not fill 64x48 pixels"
    ):
        labels(content(root))


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<annotations>", f"{LAUGHS}<annotations>", "declares a document type or entities"),
        (
            "<annotations>",
            '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotations>',
            "declares a document type or entities",
        ),
        ("</annotations>", "", "is no XML"),
        ("</annotations>", "<track/></annotations>", 'holds tracks of a video: export it as "CVAT for images 1.1"'),
        ('width="64"', 'width="6e4"', "width of image is '6e4', no whole numbers"),
        ('width="64"', "", "image has no width"),
        ('z_order="1"', 'z_order="9999999999999999999999"', "no whole numbers"),
        ('points="2.0,', 'points="nan,', "is NaN"),
        ('points="2.0,', 'points="two,', "could not convert"),
        ("</image>", '<mask label="road" rle="1, 2" left="0" top="0" width="9"/></image>', "mask has no height"),
    ],
)
def test_a_bad_xml_is_told_in_a_line_with_its_name(root: Path, old: str, new: str, told: str) -> None:
    cvat(root)
    text = (root / "annotations.xml").read_text()
    assert old in text
    (root / "annotations.xml").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=r"annotations.xml: ") as error:
        content(root)
    assert told in str(error.value)


@pytest.mark.parametrize("box", ["60, 0, 9, 4", "0, 47, 4, 9", "-1, 0, 4, 9", "0, 0, 0, 0"])
def test_a_mask_that_leads_out_of_the_picture_is_refused(box: str) -> None:
    left, top, width, height = map(int, box.split(","))
    with pytest.raises(ValueError, match="leads out of the picture 64x48"):
        Runs(np.array([36]), box=(left, top, width, height)).mask((48, 64))


def test_an_archive_that_unpacks_to_too_much_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmv3.data.importing.cvat._MAX_BYTES", 10**6)
    with zipfile.ZipFile(root / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", b" " * 10**7)
    with pytest.raises(DataError, match=r"b.zip: annotations.xml in it is larger than 1 MB"):
        content(root / "b.zip")
    (root / "b.zip").write_bytes((root / "b.zip").read_bytes().replace(b"\x08\x00", b"\x63\x00"))
    with pytest.raises(DataError, match=r"b.zip: annotations.xml cannot be read from it"):
        content(root / "b.zip")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"annotations": [{"result": [{"value": {"rle": [0, 300], "brushlabels": ["x"]}}]}]},
            "the height of task 1: region 1",
        ),
        ({"annotations": [{"result": [{"value": 3}]}]}, "task 1: value is 3, not an object"),
        ({"annotations": {}, "predictions": "x"}, "task 1: predictions is text, not a list"),
        ({"data": []}, "task 1: data is a list, not an object"),
    ],
)
def test_a_bad_task_is_told(root: Path, change: dict[str, Any], told: str) -> None:
    label_studio(root)
    tasks = json.loads((root / "project-3.json").read_text())
    (root / "project-3.json").write_text(
        json.dumps([{"data": {"image": "a.png"}, "x": {"data": 1, "result": 1}} | tasks[0] | change])
    )
    with pytest.raises(DataError, match=r"project-3.json: ") as error:
        content(root)
    assert told in str(error.value)


def test_a_brush_of_another_picture_is_refused_when_drawn(root: Path) -> None:
    label_studio(root)
    size = {"original_width": 64, "original_height": 48}
    for rle, told in (
        (brush_rle(np.ones((4, 4), np.uint8)), "not those of a picture of 64x48"),
        ([300], "bytes must be in"),
    ):
        value = {"format": "rle", "rle": rle, "brushlabels": ["road"]}
        result = [{**size, "value": value}, {**size, "value": value | {"brushlabels": ["car"]}}]
        (root / "project-3.json").write_text(
            json.dumps([{"data": {"image": "a.png"}, "annotations": [{"result": result}]}])
        )
        with pytest.raises(DataError, match=told):
            labels(content(root))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.1 0.1 0.2 0.1 0.2 0.2", "line 1 begins with '2', no class of road, traffic light"),
        ("x 0.1", "line 1 begins with 'x'"),
        ("0 0.1 0.1 0.2 0.1 0.2", "line 1: it has 5 numbers"),
        ("0 a b c d e f", "line 1: could not convert"),
        ("0 0.1 0.1 0.2 0.1 0.2 nan", "is NaN"),
        ("0" * 5000 + " 1", "line 1 begins with"),
    ],
)
def test_a_bad_line_of_yolo_is_told(root: Path, line: str, told: str) -> None:
    yolo(root)
    (root / "labels/train/a.txt").write_text(line)
    with pytest.raises(DataError, match=r"labels/train/a.txt: ") as error:
        content(root)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("names: [road, {a: b}]", "names must be texts, numbered from 0"),
        ("names: {road: 0, car: 1}", "names must be texts"),
        ("names: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("names: [", "while parsing"),
        ("- names: 1", "its content is a list"),
        ("names: 3", "names is 3, not an object"),
    ],
)
def test_a_bad_yaml_is_told(root: Path, text: str, told: str) -> None:
    yolo(root)
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data.yaml: ") as error:
        content(root)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shapes": [{"label": 3, "points": []}]}, "shapes[0].label is 3, not text"),
        ({"shapes": [{"label": "x", "points": [[1, 2], [3, 4]]}]}, "shape 1 (x) has 4 numbers"),
        ({"imageWidth": None}, "the width of"),
        ({"imagePath": "../../../a.png"}, "which leads out of"),
    ],
)
def test_a_bad_labelme_file_is_told(root: Path, change: dict[str, Any], told: str) -> None:
    labelme(root)
    path = root / "json/a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"json/a.json") as error:
        content(root)
    assert told in str(error.value)


def test_a_damaged_archive_is_of_no_known_kind(root: Path) -> None:
    with zipfile.ZipFile(root / "b.zip", "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
    whole = (root / "b.zip").read_bytes()
    (root / "b.zip").write_bytes(whole.replace(b"PK\x01\x02", b"PK\x09\x02"))
    with pytest.raises(DataError, match=r"b.zip is of no kind that is known"):
        content(root / "b.zip")


def test_boxes_alone_are_no_labels(root: Path) -> None:
    coco(root, annotations=[{"image_id": 7, "category_id": 0, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(DataError, match="holds no region of a class, but 1 annotations without a region, boxes alone"):
        content(root)


def test_an_import_goes_through_to_a_data_set_that_opens(here: Path) -> None:
    predict_source("in", net, CLASSES, Path("out"), save=["cvat"])
    with pytest.raises(OutputError, match="in/set lies in in, which is only read"):
        import_data("out/cvat.zip", "in/set", ImportSettings(images=Path("in")))
    made = import_data("out/cvat.zip", "set", ImportSettings(images=Path("in"), val=0))
    assert made.splits == {"train": 2} and [each.id for each in made.classes] == [0, 1, 2]
    assert read_classes(Path("set"))[0] == CLASSES
    for name, (file, drawn) in TRUTH.items():
        assert np.array_equal(read_ids(Path(f"set/labels/train/{name}.png")), net(scene(*drawn))[0])
        assert Path(f"set/images/train/{name}.png").samefile(file)


ODD: list[Any] = [None, True, -1, 2**70, 0.5, float("nan"), "x", "", [], [[]], {}, {"a": [1]}, "\x1b[31m", "../../x"]


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON file."""
    yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*way, key))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "label-studio", "labelme"])
def test_no_value_of_a_file_makes_more_of_it_than_a_line(root: Path, kind: str) -> None:
    KINDS[kind](root)
    path = next(root.rglob("*.json"))
    whole = json.loads(path.read_text())
    told = set()
    for way in places(whole):
        for odd in ODD:
            changed = json.loads(json.dumps({"": whole}))
            at = changed
            for key in ("", *way)[:-1]:
                at = at[key]
            at[("", *way)[-1]] = odd
            path.write_text(json.dumps(changed[""]))
            try:
                for label in labels(content(root, kind=kind)).values():
                    assert label.shape == (48, 64) or kind == "label-studio"
            except DataError as error:
                told.add(str(error))
                assert str(error).isprintable() and str(root) in str(error), error
    assert len(told) > 20


def test_a_folder_of_predict_names_the_file_in_it(here: Path) -> None:
    predict_source("in/a.png", net, CLASSES, Path("out"), save=["cvat"])
    with pytest.raises(DataError, match=r"out is a folder; the cvat file in it is out/cvat.zip: import that one"):
        reader_of(Path("out"), ImportSettings())

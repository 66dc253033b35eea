"""Results of predict: every kind for images and videos, and what people do with them afterwards."""

import csv
import json
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segmv3.cli import main
from segmv3.data.datasets import find_split, opened
from segmv3.data.settings import Data
from segmv3.errors import ConfigError, OutputError, ResourceError
from segmv3.files import make_folder
from segmv3.images import UInt8Array, read_ids, read_image, write_png
from segmv3.labels import IGNORE, Classes, announced_classes, read_classes
from segmv3.media.draw import Style
from segmv3.media.encoding import VideoWriter
from segmv3.media.video import VideoReader
from segmv3.prediction import gathering, predict_source
from segmv3.prediction.adapting import cropped, merged
from segmv3.prediction.contract import Found
from segmv3.prediction.merging import ids_of, read_merge
from segmv3.prediction.results import KINDS
from segmv3.prediction.shapes import brush_rle, largest_outline, polygons, runs, runs_down

CLASSES = Classes(("road", "traffic light", "<sky> & co"), ((128, 64, 128), (250, 170, 30), (70, 130, 180)))
SURE = 204  # of 255: 0.8

FILES = {
    "overlay": ["a_overlay.png"],
    "side-by-side": ["a_side-by-side.png"],
    "image": ["a_image.png"],
    "labels": ["a_labels.png", "classes.json"],
    "color": ["a_color.png"],
    "confidence": ["a_confidence.png"],
    "masks": ["a_mask_road.png", "a_mask_traffic_light.png", "a_mask__sky_co.png"],
    "json": ["predictions.json"],
    "csv": ["predictions.csv"],
    "coco": ["coco.json"],
    "cvat": ["cvat.zip"],
    "label-studio": ["label-studio.json", "label-studio.xml"],
}


def scene(seed: int = 0, height: int = 48, width: int = 64) -> UInt8Array:
    """Blobs of three brightnesses, so that there are holes, specks and thin parts."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    image = np.digitize(smooth, [-0.08, 0.08]).astype(np.uint8) * 100
    return np.dstack([image, image, image])


def predict(image: UInt8Array) -> Found:
    labels = (image[..., 0].astype(int) + 50) // 100
    return labels.astype(np.uint8), np.full(labels.shape, SURE, np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in/sub").mkdir(parents=True)
    write_png(Path("in/a.png"), scene(0))
    write_png(Path("in/sub/b c.png"), scene(1, 33, 81))
    return tmp_path


@pytest.fixture
def drive(here: Path) -> Path:
    pytest.importorskip("av")
    with VideoWriter("d.webm", 10, (48, 64)) as video:
        for seed in range(6):
            video.write(scene(seed))
    return Path("d.webm")


def save(source: str, *kinds: str, output: str = "out", **options: Any) -> list[Path]:
    return predict_source(source, options.pop("predict", predict), CLASSES, Path(output), save=kinds, **options)


def files(folder: str | Path = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def truth(path: str | Path) -> UInt8Array:
    return predict(read_image(Path(path)))[0]  # type: ignore[return-value]


# ---- every kind ----


def test_the_battery_knows_every_kind() -> None:
    assert set(FILES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_in_each_kind_by_its_names_and_never_over_another(here: Path, kind: str) -> None:
    written = save("in/a.png", kind)
    assert files() == sorted(FILES[kind])
    assert {path.name for path in written} == set(FILES[kind]) - {"classes.json"}
    before = {name: Path("out", name).read_bytes() for name in files()}
    with pytest.raises(OutputError, match="exists?; choose another --output or add --overwrite"):
        save("in/a.png", kind)
    assert {name: Path("out", name).read_bytes() for name in files()} == before
    save("in/a.png", kind, overwrite=True)
    assert files() == sorted(FILES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_in_each_kind_every_third_frame(drive: Path, kind: str) -> None:
    written = save("d.webm", kind, every=3)
    assert all(path.exists() for path in written)
    kept = ["000000.png", "000003.png"]
    for path in written:
        assert path.name.startswith("d_")
        if path.is_dir():
            assert files(path) == kept
        elif path.suffix == ".webm":
            with VideoReader(path) as video:
                assert [round(float(time), 2) for _, time in video.timed()] == [0, 0.3]
    with pytest.raises(OutputError, match="exists?; choose another --output or add --overwrite"):
        save("d.webm", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_leaves_complete_files(here: Path, kind: str) -> None:
    def interrupted(image: UInt8Array) -> Found:
        if image.shape[0] == 33:
            raise KeyboardInterrupt
        return predict(image)

    with pytest.raises(KeyboardInterrupt):
        save("in", kind, predict=interrupted)
    assert files() == sorted(FILES[kind])
    for name in files():
        if name.endswith(".json"):
            assert json.loads(Path("out", name).read_text())
        elif name.endswith(".zip"):
            assert zipfile.ZipFile(Path("out", name)).testzip() is None
        elif name.endswith(".png"):
            read_image(Path("out", name))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if isinstance(KINDS[kind], gathering.Gathered)])
def test_a_full_disk_leaves_nothing_half(here: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gathering, "new_file_beside", full)
    with pytest.raises(ResourceError, match=r"the disk is full: out/"):
        save("in", kind, "labels")
    assert files()[-1] == "sub/b c_labels.png" or files() == ["a_labels.png", "classes.json"]


def test_a_name_that_is_too_long_costs_only_that_file(here: Path) -> None:
    long = "n" * 244
    write_png(Path(f"in/{long}.png"), scene(2))
    with pytest.raises(Exception, match=r"1 of 3 images could not be written \(first: out/nnn.*too long"):
        save("in", "image", "overlay", "color", "csv")  # _image.png fits, _overlay.png does not
    assert f"{long}_image.png" in files() and f"{long}_color.png" in files() and f"{long}_overlay.png" not in files()
    with Path("out/predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


# ---- pictures ----


def test_confidence_masks_and_side_by_side(here: Path) -> None:
    save("in/a.png", "confidence", "masks", "side-by-side", only=["traffic light"], style=Style(legend=False))
    assert files() == ["a_confidence.png", "a_mask_traffic_light.png", "a_side-by-side.png"]
    assert set(np.unique(np.array(Image.open("out/a_confidence.png")))) == {SURE}
    mask = np.array(Image.open("out/a_mask_traffic_light.png"))
    assert np.array_equal(mask, np.where(truth("in/a.png") == 1, 255, 0))
    both = read_image(Path("out/a_side-by-side.png"))
    assert both.shape == (48, 128, 3) and np.array_equal(both[:, :64], read_image(Path("in/a.png")))


def test_confidence_needs_a_net_that_gives_it(here: Path) -> None:
    with pytest.raises(ConfigError, match="cannot save 'confidence': what predicts gives labels alone"):
        save("in/a.png", "confidence", predict=lambda image: predict(image)[0])
    save("in/a.png", "json", predict=lambda image: predict(image)[0])
    assert json.loads(Path("out/predictions.json").read_text())["pictures"][0]["mean_confidence"] is None


def test_what_is_blurred_is_blurred_in_every_picture(here: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)
    write_png(Path("in/noise.png"), image)
    labels = np.zeros((100, 120), np.uint8)
    labels[30:60, 40:80] = 1
    kinds = ("image", "overlay", "side-by-side")
    style = Style(alpha=0, legend=False, blur=("traffic light",))
    save("in/noise.png", *kinds, predict=lambda image: labels, style=style)
    for kind in kinds:
        seen = read_image(Path(f"out/noise_{kind}.png"))[:, -120:]
        assert seen[labels == 1].std() < 15 < image[labels == 1].std()
        assert np.array_equal(seen[:20], image[:20])
    with pytest.raises(ConfigError, match=r"--blur: the net has no class 'trafic light'; did you mean traffic light\?"):
        save("in/a.png", "image", output="new", style=Style(blur=("trafic light",)))
    assert not Path("new").exists()


# ---- tables ----


def test_tables_hold_shares_areas_the_way_and_how_sure_the_net_is(here: Path, drive: Path) -> None:
    save("in", "json", "csv")
    told = json.loads(Path("out/predictions.json").read_text())
    assert told["classes"] == list(CLASSES.names)
    a, b = told["pictures"]
    labels = truth("in/sub/b c.png")
    assert (a["file"], b["file"], b["width"], b["height"]) == ("a.png", "sub/b c.png", 81, 33)
    assert b["mean_confidence"] == 0.8 and b["frame"] is None and b["seconds"] is None
    assert [entry["pixels"] for entry in b["classes"].values()] == np.bincount(labels.ravel()).tolist()
    assert sum(entry["share"] for entry in b["classes"].values()) == pytest.approx(1, abs=1e-5)
    with Path("out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["pixels road"] == str((labels == 0).sum()) and rows[1]["drivable polygon"].startswith("POLYGON ((")
    save("d.webm", "json")
    frames = json.loads(Path("out/d_predictions.json").read_text())["pictures"]
    assert [(f["frame"], round(f["seconds"], 2)) for f in frames] == [(i, i / 10) for i in range(6)]


def test_the_drivable_polygon_is_the_largest_part() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[2:6, 2:6] = 1
    mask[30:60, 10:70] = 1
    mask[40:44, 40:44] = 0
    xs, ys = np.array(largest_outline(mask)).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (10.5, 69.5, 30.5, 59.5)
    assert largest_outline(np.zeros((5, 5), np.uint8)) == []


# ---- annotations ----


def drawn(rings: list[Any], size: tuple[int, int]) -> UInt8Array:
    """Polygons as pixels whose centres are inside."""
    from matplotlib.path import Path as Outline

    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    centres = np.column_stack([xs.ravel(), ys.ravel()])
    mask = np.zeros(size, bool)
    for ring in rings:
        mask |= Outline(np.reshape(ring, (-1, 2))).contains_points(centres).reshape(size)
    return mask.view(np.uint8)


def from_runs(counts: list[int], size: tuple[int, int]) -> UInt8Array:
    return np.repeat(np.arange(len(counts)) % 2, counts).reshape(size).astype(np.uint8)


def of_coco(out: Path, outlines: bool) -> Iterator[tuple[str, str, UInt8Array]]:
    found = json.loads((out / "coco.json").read_text())
    images = {image["id"]: image for image in found["images"]}
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert len({each["id"] for each in found["annotations"]}) == len(found["annotations"])
    for each in found["annotations"]:
        image, shape = images[each["image_id"]], each["segmentation"]
        size = image["height"], image["width"]
        mask = drawn(shape, size) if outlines else from_runs(shape["counts"], size[::-1]).T
        assert outlines or each["area"] == mask.sum()
        yield image["file_name"], names[each["category_id"]], mask


def of_cvat(out: Path, outlines: bool) -> Iterator[tuple[str, str, UInt8Array]]:
    with zipfile.ZipFile(out / "cvat.zip") as archive:
        root = ET.fromstring(archive.read("annotations.xml"))
        assert [label["name"] for label in json.loads(archive.read("labels.json"))] == list(CLASSES.names)
    assert [label.findtext("name") for label in root.iter("label")] == list(CLASSES.names)
    for image in root.iter("image"):
        size = int(image.attrib["height"]), int(image.attrib["width"])
        masks: dict[str, UInt8Array] = {}
        for shape in image:
            mask = masks.setdefault(shape.attrib["label"], np.zeros(size, np.uint8))
            if outlines:
                points = [list(map(float, point.split(","))) for point in shape.attrib["points"].split(";")]
                mask |= drawn([points], size)
                continue
            left, top, width, height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
            counts = list(map(int, shape.attrib["rle"].split(",")))
            mask[top : top + height, left : left + width] = from_runs(counts, (height, width))
        yield from ((image.attrib["name"], name, mask) for name, mask in masks.items())


def of_label_studio(out: Path, outlines: bool) -> Iterator[tuple[str, str, UInt8Array]]:
    config = ET.parse(out / "label-studio.xml")
    assert [label.attrib["value"] for label in config.iter("Label")] == list(CLASSES.names)
    for task in json.loads((out / "label-studio.json").read_text()):
        masks: dict[str, UInt8Array] = {}
        for each in task["predictions"][0]["result"]:
            size = each["original_height"], each["original_width"]
            value = each["value"]
            mask = masks.setdefault(value[each["type"]][0], np.zeros(size, np.uint8))
            if outlines:
                mask |= drawn([np.array(value["points"]) / 100 * size[::-1]], size)
            else:
                mask |= unpacked(value["rle"]).reshape(*size, 4)[..., 3] // 255
        name = task["data"]["image"].removeprefix("/data/local-files/?d=").replace("%20", " ")
        yield from ((name, each, mask) for each, mask in masks.items())


def unpacked(packed: list[int]) -> UInt8Array:
    """Label Studio's runs, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        same, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("outlines", [False, True])
@pytest.mark.parametrize(("kind", "read"), [("coco", of_coco), ("cvat", of_cvat), ("label-studio", of_label_studio)])
def test_annotations_read_back_are_the_labels(
    here: Path, kind: str, read: Callable[[Path, bool], Iterator[tuple[str, str, UInt8Array]]], outlines: bool
) -> None:
    save("in", kind, polygons=outlines, only=["road", "<sky> & co"])
    seen = set()
    for file, name, mask in read(Path("out"), outlines):
        seen.add((file, name))
        expected = (truth(f"in/{file}") == CLASSES.names.index(name)).astype(np.uint8)
        assert not far_apart(mask, expected) if outlines else np.array_equal(mask, expected)
    assert seen == {(file, name) for file in ("a.png", "sub/b c.png") for name in ("road", "<sky> & co")}


def far_apart(one: UInt8Array, other: UInt8Array) -> bool:
    """Whether a border or a part of one is more than a pixel away from the other's."""
    reach = np.ones((3, 3), np.uint8)
    inner = cv2.erode(other, reach, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    missed = (inner > one) | (other > cv2.dilate(one, reach))
    return bool((missed | (one > cv2.dilate(other, reach))).any())


@pytest.mark.parametrize("outlines", [False, True])
def test_pycocotools_reads_it(here: Path, outlines: bool) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    save("in", "coco", polygons=outlines)
    read = coco.COCO("out/coco.json")
    assert len(read.getImgIds()) == 2
    for each in read.loadAnns(read.getAnnIds()):
        image = read.loadImgs(each["image_id"])[0]
        expected = (truth(f"in/{image['file_name']}") == each["category_id"] - 1).astype(np.uint8)
        mask = read.annToMask(each)
        assert not far_apart(mask, expected) if outlines else np.array_equal(mask, expected)


def test_frames_are_named_as_the_tools_name_them(drive: Path) -> None:
    save("d.webm", "coco", "cvat", "image", every=3)
    images = json.loads(Path("out/d_coco.json").read_text())["images"]
    assert all((Path("out") / image["file_name"]).is_file() for image in images) and len(images) == 2
    with zipfile.ZipFile("out/d_cvat.zip") as archive:
        root = ET.fromstring(archive.read("annotations.xml"))
    assert [image.attrib["name"] for image in root.iter("image")] == ["frame_000000", "frame_000003"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 50), (300, 400)])
@pytest.mark.parametrize("fill", [0, 1, 0.02, 0.5, 0.98])
def test_shapes_of_any_mask(shape: tuple[int, int], fill: float) -> None:
    mask = (np.random.default_rng(3).random(shape) < fill).astype(np.uint8)
    assert np.array_equal(from_runs(runs(mask).tolist(), shape), mask)
    labels = np.where(mask, 7, np.arange(shape[1], dtype=np.uint8) % 3)
    for train_id, counts in zip((0, 1, 7, 9), runs_down(labels, (0, 1, 7, 9)), strict=True):
        assert counts.tolist() == runs((labels == train_id).astype(np.uint8).T).tolist()
    if mask.size < 5000 or fill in (0, 1):
        assert np.array_equal(unpacked(brush_rle(mask)).reshape(*shape, 4)[..., 3], mask * 255)
    if mask.size < 5000:
        assert np.array_equal(drawn([ring.ravel() for ring in polygons(mask, 0)], shape), mask)


# ---- a data set ----


def test_the_output_is_a_data_set(here: Path) -> None:
    for split in ("train", "val"):
        Path("my", split, "images").mkdir(parents=True)
        for seed in range(3):
            write_png(Path("my", split, "images", f"{split}{seed}.png"), scene(seed, 64, 96))
        save(f"my/{split}/images", "labels", output=f"my/{split}/labels")
    dataset = opened(find_split(Data(dataset="folder", root=Path("my")), "train"))
    assert dataset.classes.names == CLASSES.names and len(dataset) == 3
    image, labels = dataset.read(1)
    assert np.array_equal(labels, predict(image)[0])


def test_classes_of_another_net_are_not_mixed(here: Path) -> None:
    save("in/a.png", "labels")
    assert read_classes(Path("out"))[0] == CLASSES
    save("in/sub/b c.png", "labels")
    other = Classes(("x", "y", "z"), CLASSES.colors)
    with pytest.raises(OutputError, match=r"out/classes.json has other classes; choose another --output"):
        predict_source("in/a.png", predict, other, Path("out"), save=["labels"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--save", "labels"],
            "output: out/classes.json has other classes; choose another --output or add --overwrite",
        ),
        (["--save", "masks", "--classes", "rod"], "config: --classes: the net has no class 'rod'; did you mean road?"),
        (["--blur", "car"], "config: --blur: the net has no class 'car'"),
        (["--blur", "road"], "checkpoint: w.safetensors "),
    ],
)
def test_what_class_names_decide_is_refused_before_the_net_is_opened(
    options: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file ends after its header: to open it would be an error of its own."""
    about = {"classes": CLASSES.names, "palette": CLASSES.colors, "format": 1}
    header = json.dumps({"__metadata__": {"segmv3": json.dumps(about)}}).encode()
    Path("w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert announced_classes(Path("w.safetensors")) == CLASSES
    make_folder(Path("out"))
    Path("out/classes.json").write_text('{"classes": [{"id": 0, "name": "x", "rgb": [1, 2, 3]}]}')
    assert main(["predict", "in/a.png", "--weights", "w.safetensors", "-o", "out", *options]) == 2
    assert capsys.readouterr().err.startswith(told)
    assert [path.name for path in Path("out").iterdir()] == ["classes.json"]


@pytest.mark.parametrize("data", [b"", b"12345678", b"\xff" * 99, (2).to_bytes(8, "little") + b"{}", b"\7" + bytes(99)])
def test_a_file_that_announces_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(data)
    assert announced_classes(tmp_path / "w") is None and announced_classes(tmp_path) is None


# ---- merging, crops and names ----

MERGE = """
[[classes]]
name = "ground"
rgb = [1, 2, 3]
from = ["road"]
[[classes]]
name = "rest"
from = ["*"]
"""


def merge_file(text: str) -> Path:
    Path("merge.toml").write_text(text)
    return Path("merge.toml")


def test_classes_are_merged(here: Path) -> None:
    merge = read_merge(merge_file(MERGE))
    assert merge.classes.names == ("ground", "rest") and merge.classes.colors[0] == (1, 2, 3)
    table = merge.table(CLASSES)
    assert table[:3].tolist() == [0, 1, 1] and table[IGNORE] == IGNORE
    labels, confidence = merged((np.array([[0, 1, 2, IGNORE]], np.uint8), None), table)
    assert labels.tolist() == [[0, 1, 1, IGNORE]] and confidence is None
    ignoring = MERGE.replace('name = "rest"', 'name = "rest"\nignore = true') + '[[classes]]\nname = "traffic light"'
    merge = read_merge(merge_file(ignoring))
    assert merge.classes.names == ("ground", "traffic light")
    assert merge.table(CLASSES)[:3].tolist() == [0, 1, IGNORE]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[classes", r"merge.toml cannot be understood \("),
        ("x = 1", r"merge.toml holds no \[\[classes\]\]"),
        (MERGE.replace('["road"]', '["raod"]'), r"merge.toml: the net has no class 'raod'; did you mean road\?"),
        (MERGE.replace('["*"]', '["road", "*"]'), r"the class 'road' is merged twice"),
        (MERGE.replace('["*"]', '["traffic light"]'), r"merge.toml leaves out <sky> & co; add them to a class, or one"),
        (MERGE.replace('name = "rest"', 'name = "rest"\nid = 0'), "ids must be different, and 0 stands twice"),
        (MERGE.replace('name = "rest"', 'name = "rest"\nid = 7'), "ids must be 0 to 1, each once"),
        (MERGE.replace('"rest"', '"ground"'), "two classes have the same name, ground"),
        (MERGE.replace("rgb", "color"), "'color' is no field of a class; there are id, name, rgb, from, ignore"),
        (MERGE.replace('["road"]', '"road"'), "from must be a list of class names"),
    ],
)
def test_merge_files_that_cannot_be_meant(here: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        read_merge(merge_file(text)).table(CLASSES)
    assert "\n" not in str(caught.value)


def test_a_merge_file_that_is_not_there(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"no.toml cannot be read"):
        read_merge(Path("no.toml"))


def test_a_crop_keeps_the_size_and_ignores_what_is_outside(here: Path) -> None:
    image = scene()
    labels, confidence = cropped(predict, (8, 4, 20, 10), image)  # type: ignore[misc]
    inside = slice(4, 14), slice(8, 28)
    assert np.array_equal(labels[inside], predict(image)[0][inside])
    assert (labels != IGNORE).sum() == 200 == (confidence > 0).sum()
    with pytest.raises(Exception, match=r"1 of 2 images could not be read \(first: in/sub/b c.png: the crop 0 0 64 48"):
        save("in", "labels", predict=lambda image: cropped(predict, (0, 0, 64, 48), image))
    assert files() == ["a_labels.png", "classes.json"]


def test_unknown_names_get_the_nearest() -> None:
    assert ids_of(["road", "road"], CLASSES, "--classes") == [0]
    with pytest.raises(ConfigError, match=r"--classes: the net has no class 'Road'; did you mean road\?"):
        ids_of(["Road"], CLASSES, "--classes")
    with pytest.raises(ConfigError, match=r"the net has no class 'qqq'; it has road, traffic light, <sky> & co"):
        ids_of(["qqq"], CLASSES, "--classes")


# ---- the command ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch

    import segmv3
    from segmv3.models.zoo import create_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 3), path, classes=CLASSES)
    return str(path)


def command(weights: str, *flags: str) -> None:
    from segmv3.commands.predict import run

    run(["in", "--weights", weights, "--output", "out", "--backend", "torch", *flags])


def test_the_command_passes_its_flags_on(here: Path, weights: str) -> None:
    merge_file(MERGE)
    flags = (
        "--classes rest --merge merge.toml --blur rest --crop 2 2 40 30 --alpha 0.2 --contours --no-legend --every 2"
    )
    command(weights, "--save", "masks,confidence,overlay,labels,coco", "--polygons", *flags.split())
    assert files() == [
        "a_confidence.png",
        "a_labels.png",
        "a_mask_rest.png",
        "a_overlay.png",
        "classes.json",
        "coco.json",
    ]
    labels = read_ids(Path("out/a_labels.png"))
    assert (labels != IGNORE).sum() == 1200 and labels[labels != IGNORE].max() <= 1
    sure = np.array(Image.open("out/a_confidence.png"))
    assert sure[labels != IGNORE].min() >= 85 and not sure[labels == IGNORE].any()
    assert read_classes(Path("out"))[0].names == ("ground", "rest")
    assert read_image(Path("out/a_overlay.png")).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--alpha 1.5", "--alpha is 1.5; it must be between 0 and 1"),
        ("--every 0", "--every is 0; it must be at least 1"),
        ("--crop 0 -1 5 5", "--crop is 0 -1 5 5: left and top from 0, width and height from 1"),
        ("--size 0 5", "--size is 0 5; both are at least 1"),
        ("--save masks --classes raod", r"--classes: the net has no class 'raod'; did you mean road\?"),
        ("--blur traffic", r"--blur: the net has no class 'traffic'; did you mean traffic light\?"),
        ("--merge merge.toml", r"merge.toml: the net has no class 'raod'"),
    ],
)
def test_flags_that_cannot_be_meant_write_nothing(here: Path, weights: str, flags: str, told: str) -> None:
    merge_file(MERGE.replace('"road"', '"raod"'))
    with pytest.raises(ConfigError, match=told):
        command(weights, *flags.split())
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_run_trains_on_labels_of_predict(here: Path, weights: str) -> None:
    from segmv3.config import AdamW, Config, Schedule
    from segmv3.models.zoo import NETS
    from segmv3.training.loop import train

    for split in ("train", "val"):
        Path("my", split, "images").mkdir(parents=True)
        for seed in range(3):
            write_png(Path("my", split, "images", f"{split}{seed}.png"), scene(seed, 64, 96))
        save(f"my/{split}/images", "labels", output=f"my/{split}/labels")
    config = Config(
        model=NETS["lraspp_small_d8"],
        data=Data(dataset="folder", root=Path("my"), batch_size=2, crop_size=(32, 48), workers=0),
        optim=AdamW(lr=1e-3),
        schedule=Schedule(steps=4, min_lr=0, eval_every=4, save_every=4, log_every=2),
    )
    result = train(config, Path("run"), device="cpu", threads=1)
    assert result.metrics
    assert Path("run/best.safetensors").is_file()

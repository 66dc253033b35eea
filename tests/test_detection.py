"""Boxes from end to end: COCO's files and their doctor, samples, mAP, the commands."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import LRASPP, BoxData, Detector, MobileNetV3, Model, load_config
from segmv3.detection.coco import open_boxes
from segmv3.detection.drawing import draw_boxes
from segmv3.detection.predictor import load_detector
from segmv3.detection.samples import BoxSamples
from segmv3.detection.scoring import MOST, average_precisions, count_boxes
from segmv3.detection.settings import Detection
from segmv3.detection.tables import count_detectors
from segmv3.errors import ConfigError, DataError, Interrupted, Segmv3Warning
from segmv3.images import read_image, write_png
from segmv3.labels import named_classes
from segmv3.media.encoding import VideoWriter
from segmv3.mini_city import write_mini_city
from segmv3.models.zoo import build
from segmv3.states import load_state
from segmv3.training.loop import train

SMALL = Detector(backbone=MobileNetV3(size="small", width=0.35), scales=(0.1, 0.9), bn_momentum=0.1)


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "city"
    write_mini_city(root, train=3, val=2, size=(64, 128))
    return root


def content(**changes) -> dict:
    own = {
        "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30]}],
    }
    return {**own, **changes}


def box(**changes) -> dict:
    return {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], **changes}


def data_set(root: Path, val: dict | str) -> BoxData:
    for split, found in (("train", content()), ("val", val)):
        (root / f"boxes_{split}.json").write_text(found if isinstance(found, str) else json.dumps(found))
    write_png(root / "a.png", np.full((40, 60, 3), 90, np.uint8))
    return BoxData(root=root, crop_size=(64, 64), batch_size=2, workers=0)


def test_boxes_are_read_in_the_order_of_the_category_ids(tmp_path):
    crowd = box(iscrowd=1, bbox=[-0.5, 0, 61, 40])  # tools round: half a pixel over the edge is cut off
    boxes = open_boxes(data_set(tmp_path, content(annotations=[*content()["annotations"], crowd])), "val")
    assert boxes.classes.names == ("person", "car")
    assert boxes.boxes[0].tolist() == [[10, 5, 30, 35, 1, 0], [0, 0, 60, 40, 0, 1]]
    assert boxes.counts().tolist() == [0, 1]
    assert boxes.classes.colors[0] == (220, 20, 60)  # Cityscapes' own


FAULTS = [
    (box(bbox=[50, 0, 20, 5]), "1 box reaches outside of its image .*annotation 2 of a.png: 50 0 20 5 in 60 x 40"),
    (box(bbox=[5, 5, 0, 5]), "1 box has no area .*annotation 2 of a.png"),
    (box(category_id=9), "1 annotation is of an unknown category .*category 9"),
    (box(image_id=9), "1 annotation is of an unknown image .*annotation 2 of image 9"),
    (box(bbox=[1, 2, 3]), "1 annotation has no box"),
    (box(bbox=None), "1 annotation has no box"),
    (box(id=1), "1 annotation has the id of another"),
]


@pytest.mark.parametrize(("fault", "text"), FAULTS)
def test_faulty_boxes_are_refused_or_left_out_with_a_word(tmp_path, fault, text):
    data = data_set(tmp_path, content(annotations=[*content()["annotations"], fault]))
    with pytest.raises(DataError, match=f"boxes_val.json: {text}"):
        open_boxes(data, "val")
    with pytest.warns(Segmv3Warning, match=f"left out: {text}"):
        boxes = open_boxes(BoxData(root=tmp_path, faulty="skip"), "val")
    assert boxes.counts().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("val", "text"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a list, not an object"),
        ("{}", "is no COCO file of boxes: it has no images"),
        (content(images=2 * content()["images"]), "two images have the id 7"),
        (content(categories=[{"id": 1, "name": "car"}, {"id": 2, "name": "car"}]), "two categories have the name car"),
        (content(categories=[{"id": 1, "name": "c\u202ear"}]), "class name"),
        (content(images=[{"id": 7, "file_name": "a.png", "width": "60", "height": 40}]), "width is text"),
        (content(images=[{"id": 7, "file_name": "b.png", "width": 60, "height": 40}]), "1 of 1 images .* are missing"),
        (content(images=[{"id": 7, "file_name": "../a.png", "width": 60, "height": 40}]), "leads out of"),
        (content(images=[], annotations=[]), "lists no image"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused_in_one_line(tmp_path, val, text):
    with pytest.raises(DataError, match=text) as caught:
        open_boxes(data_set(tmp_path, val), "val")
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_is_refused(tmp_path, capsys):
    data = data_set(tmp_path, content(annotations=[box()]))
    write_png(tmp_path / "a.png", np.zeros((20, 60, 3), np.uint8))
    with pytest.raises(DataError, match=r"a.png is 60 x 20, but .* says 60 x 40"):
        open_boxes(data, "val").read(0)


def test_mini_city_writes_boxes_around_what_is_seen(city):
    boxes = open_boxes(BoxData(root=city), "train")
    assert boxes.classes.names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    labels = read_image(next((city / "gtFine/train").rglob("*_color.png")))
    left, top, right, bottom, label, _ = max(boxes.boxes[0].tolist(), key=lambda row: row[2] - row[0])
    inside = labels[int(top) : int(bottom), int(left) : int(right)] == boxes.classes.colors[int(label)]
    assert inside.all(2).any(0)[[0, -1]].all() and inside.all(2).any(1)[[0, -1]].all()


def test_a_mini_city_of_an_earlier_version_gets_its_boxes(city, tmp_path):
    shutil.copytree(city, tmp_path / "old")
    before = (tmp_path / "old/boxes_val.json").read_bytes()
    (tmp_path / "old/boxes_val.json").unlink()
    write_mini_city(tmp_path / "old", train=3, val=2, size=(64, 128))
    assert (tmp_path / "old/boxes_val.json").read_bytes() == before
    assert main(["detect", "prepare", str(tmp_path / "old")]) == 2  # nothing is overwritten
    assert main(["detect", "prepare", str(tmp_path / "old"), "--overwrite"]) == 0
    assert (tmp_path / "old/boxes_val.json").read_bytes() == before


def test_a_sample_is_a_function_of_seed_epoch_and_image(city):
    data = BoxData(root=city, crop_size=(64, 96))
    boxes = open_boxes(data, "train")
    before = torch.random.get_rng_state()
    (one, first, _), (again, second, _), (other, third, _) = (
        BoxSamples(boxes, data, 0)[address] for address in ((1, 2), (1, 2), (2, 2))
    )
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout does not depend on the workers
    assert torch.equal(one, again) and torch.equal(first, second)
    assert not torch.equal(one, other)
    assert one.shape == (64, 96, 3) and one.dtype == torch.uint8
    assert first.shape == third.shape == (boxes.most_boxes, 5)
    kept = first[first[:, 4] >= 0]
    assert len(kept) and (kept[:, 2:4] > kept[:, :2]).all()
    assert (kept[:, :2] >= 0).all() and (kept[:, 2] <= 96).all() and (kept[:, 3] <= 64).all()


def test_the_plain_sample_is_the_stretched_image_with_its_boxes(city):
    data = BoxData(root=city, crop_size=(128, 128), zoom_in=0, zoom_out=0, flip=0, jitter=0)
    boxes = open_boxes(data, "train")
    _, target, _ = BoxSamples(boxes, data, 0)[0, 0]
    truth = boxes.boxes[0]
    large = truth[(truth[:, 2] - truth[:, 0] >= 1) & (truth[:, 3] - truth[:, 1] >= 1)]
    np.testing.assert_allclose(target[: len(large), :4], large[:, :4] * [1, 2, 1, 2], atol=1e-3)


def test_a_perfect_net_scores_a_hundred_and_shares_add_up(city):
    boxes = open_boxes(BoxData(root=city), "val")
    rows = torch.zeros(2, MOST, 6, dtype=torch.int64)
    for index, truth in enumerate(boxes.boxes):
        values = np.column_stack([truth[:, :4] * 1e3, np.full(len(truth), 9e8), truth[:, 4] + 1])
        rows[index, : len(truth)] = torch.from_numpy(values).round().long()
    scores = average_precisions(rows, boxes)
    assert (scores["map"], scores["map50"]) == (pytest.approx(100), pytest.approx(100))
    shares = [rows * torch.tensor([1, 0])[:, None, None], rows * torch.tensor([0, 1])[:, None, None]]
    assert average_precisions(sum(shares), boxes) == scores
    rows[:, :, :4] += 10**9  # everywhere else
    assert average_precisions(rows, boxes)["map"] == 0
    assert average_precisions(torch.zeros_like(rows), boxes)["map"] == 0


def test_average_precision_is_that_of_a_hand_made_case(tmp_path):
    """One of two cars is found, after a wrong one: precision 1/2 up to recall 1/2, so AP50 is 51/101 of 50 %."""
    cars = [{"id": i, "image_id": 7, "category_id": 3, "bbox": [20 * i, 5, 15, 30]} for i in (0, 1)]
    boxes = open_boxes(data_set(tmp_path, content(annotations=cars)), "val")
    rows = torch.zeros(1, MOST, 6, dtype=torch.int64)
    rows[0, 0] = torch.tensor([45_000, 5000, 60_000, 35_000, 900_000_000, 2])
    rows[0, 1] = torch.tensor([20_000, 5000, 35_000, 35_000, 800_000_000, 2])
    scores = average_precisions(rows, boxes)
    assert scores["map50"] == pytest.approx(50 * 51 / 101)
    assert scores["classes"][0] == {"name": "person", "boxes": 0, "map": None, "map50": None}


def test_the_shares_of_processes_are_those_of_the_whole(city):
    boxes, net = open_boxes(BoxData(root=city), "val"), build(SMALL, 8).eval()
    options = {"device": torch.device("cpu")}
    whole = count_boxes(net, boxes, (64, 64), **options)
    parts = [count_boxes(net, boxes, (64, 64), indices=[index], **options) for index in (0, 1)]
    assert torch.equal(whole, sum(parts))


def test_counts_are_within_three_percent_of_the_papers_table():
    rows = list(count_detectors())
    assert len(rows) == 5
    for row in rows:
        assert row.parameters / 1e6 == pytest.approx(row.theirs["parameters"], rel=0.03)
        assert row.gmacs == pytest.approx(row.theirs["gmacs"], rel=0.03)


def test_drawing_keeps_the_image_and_stays_inside():
    image = np.full((40, 60, 3), 128, np.uint8)
    rows = np.array([[5, 5, 30, 30, 0, 0.9], [-4, 30, 64, 44, 1, 0.0]], np.float32)
    drawn = draw_boxes(image, rows, named_classes("car", "a very long name of a class"))
    assert (image == 128).all() and drawn.shape == image.shape and (drawn != image).any()


def test_settings_that_cannot_be_are_refused(city):
    config = load_config("detect/quickstart", kind=Detection)
    assert config.model.backbone.size == "small"
    with pytest.raises(ConfigError, match="is an experiment for `segmv3 detect train`"):
        load_config("detect/quickstart")
    for flags, text in (
        ({"zoom_in": 1.5}, "data.zoom-in: is a probability"),
        ({"crop_size": (16, 64)}, "data.crop-size: must be at least 32 x 32"),
    ):
        with pytest.raises(ConfigError, match=text):
            Detection(model=SMALL, data=BoxData(root=city, **flags), schedule=config.schedule)


@pytest.fixture
def config(city, tmp_path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(f"""from pathlib import Path
from segmv3.config import AdamW, BoxData, Detection, Detector, MobileNetV3, Schedule

config = Detection(
    model=Detector(backbone=MobileNetV3(size="small", width=0.35), scales=(0.1, 0.9), bn_momentum=0.1),
    data=BoxData(root=Path({str(city)!r}), batch_size=2, crop_size=(64, 96), workers=0),
    optim=AdamW(lr=1e-3),
    schedule=Schedule(steps=4, eval_every=2, save_every=2, log_every=1),
)
""")
    return path


def test_train_evaluate_predict(config, city, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["detect", "train", str(config), "--run", str(run), "--threads", "1", "--device", "cpu"]) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if entry["event"] == "eval"] == [2, 4]
    page = (run / "report.html").read_text()
    assert "Average precision by class" in page and "smooth L1" in page and "boxes_{split}" not in page
    weights = str(run / "best.safetensors")
    card = load_detector(weights, device="cpu")
    assert card.size == (64, 96) and card.card.facts["score"]["split"] == "val"

    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["net"]["gmacs"] > 0 and manifest["net"]["gmacs_size"] == [320, 320]
    assert manifest["config_file"] == config.name

    output = tmp_path / "scores.json"
    assert main(["detect", "evaluate", str(config), "--weights", weights, "--output", str(output)]) == 0
    best = max(entry["map"] for entry in log if entry["event"] == "eval")
    assert json.loads(output.read_text())["map"] == pytest.approx(best, abs=1e-6)
    assert main(["detect", "evaluate", str(config), "--weights", weights, "--output", str(output)]) == 2

    source, found = str(city / "leftImg8bit/val"), tmp_path / "found"
    arguments = ["detect", "predict", source, "--weights", weights, "-o", str(found), "--score", "0.01"]
    assert main(arguments) == 0
    assert len(list(found.rglob("*_boxes.png"))) == 2
    written = json.loads((found / "boxes.json").read_text())
    assert {"images", "annotations", "categories"} <= written.keys() and len(written["images"]) == 2
    rows = load_detector(weights, device="cpu").rows(read_image(next(Path(source).rglob("*.png"))), 0.01)
    assert len(rows) == sum(each["image_id"] == 1 for each in written["annotations"])
    capsys.readouterr()
    assert main(arguments) == 2
    assert "exist" in capsys.readouterr().err

    with VideoWriter(tmp_path / "drive.mp4", 10, (48, 64)) as video:
        for grey in (40, 90, 140):
            video.write(np.full((48, 64, 3), grey, np.uint8))
    arguments[2], arguments[6] = str(tmp_path / "drive.mp4"), str(tmp_path / "film")
    assert main(arguments) == 0
    assert sorted(file.name for file in (tmp_path / "film").iterdir()) == ["drive_boxes.json", "drive_boxes.webm"]


@pytest.mark.slow
@pytest.mark.parametrize("areas", [None, LRASPP(channels=16)])
def test_an_interrupted_run_ends_as_an_unbroken_one(config, tmp_path, areas):
    settings = load_config(config, kind=Detection)
    data = replace(settings.data, areas=areas and "cityscapes")
    settings = replace(settings, model=replace(settings.model, areas=areas), data=data)

    def stop(step: int, score: float) -> None:
        raise KeyboardInterrupt

    options = {"device": "cpu", "threads": 1, "quiet": True}
    train(settings, tmp_path / "whole", **options)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(settings, tmp_path / "parts", on_evaluation=stop, **options)
    train(settings, tmp_path / "parts", **options)
    whole, parts = (load_state(tmp_path / name / "state") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, parts["model"][name]), name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "no detect command 'fly'"),
        ([], "nothing to do for detect alone"),
        (["train"], "needs a config file first"),
        (["predict", "a.png", "--weights", "x.safetensors", "--score", "1.5"], "--score is 1.5"),
        (["predict", "nowhere.png", "--weights", "x.safetensors"], "nowhere.png does not exist"),
        (["predict", "a.png", "--weights", "x.safetensors", "--parts", "no.py"], "--parts no.py does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, text, capsys):
    assert main(["detect", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_weights_of_another_task_are_one_line(city, config, tmp_path, capsys):
    areas, boxes = tmp_path / "areas.safetensors", tmp_path / "boxes.safetensors"
    checkpoint.save(build(Model(backbone=MobileNetV3(size="small", width=0.35)), 8), areas)
    checkpoint.save(build(SMALL, 2), boxes, classes=("a", "b"))
    picture = str(next((city / "leftImg8bit/val").rglob("*.png")))
    for arguments, text in (
        (["detect", "evaluate", str(config), "--weights", str(areas)], "is a segmentation net: use it with"),
        (["detect", "predict", picture, "--weights", str(areas), "-o", str(tmp_path / "o")], "is a segmentation net"),
        (["predict", picture, "--weights", str(boxes), "-o", str(tmp_path / "o")], "is a detector: use it with"),
        (["classify", "predict", picture, "--weights", str(boxes)], "is a detector: use it with"),
        (["export", str(boxes), "--to", "onnx"], "is a detector: use it with"),
        (["detect", "evaluate", str(config), "--weights", str(boxes)], "2 classes stored, 8 requested"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1, (arguments, error)
    assert not (tmp_path / "o").exists()

"""One net that draws boxes and labels areas: its data, its samples, its pass, the commands."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import LRASPP, BoxData, Detector, Loss, LRASPPPlus, MobileNetV3, Model, Schedule, load_config
from segmv3.detection.coco import open_boxes
from segmv3.detection.predictor import load_detector
from segmv3.detection.samples import BoxesAndLabels, BoxSamples
from segmv3.detection.scoring import count_boxes
from segmv3.detection.settings import Detection
from segmv3.errors import ConfigError, DataError, ModelError, Segmv3Warning
from segmv3.images import read_image, write_png
from segmv3.labels import cityscapes_classes
from segmv3.metrics import ConfusionMatrix
from segmv3.mini_city import write_mini_city
from segmv3.models.zoo import build, net_name
from segmv3.weights.transfer import start_from

BACKBONE = MobileNetV3(size="small", width=0.35)
BOTH = Detector(backbone=BACKBONE, scales=(0.1, 0.9), bn_momentum=0.1, areas=LRASPP(channels=16))


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "city"
    write_mini_city(root, train=3, val=2, size=(64, 128))
    return root


def street(root: Path, *, box: str = "car") -> BoxData:
    """One image with a car and its box."""
    classes = [{"id": 0, "name": "road"}, {"id": 1, "name": "car"}]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20:50] = 1
    for folder, content in (("images", np.full((40, 60, 3), 90, np.uint8)), ("labels", labels)):
        for split in ("train", "val"):
            (root / folder / split).mkdir(parents=True)
            write_png(root / folder / split / "a.png", content)
    for split in ("train", "val"):
        found = {
            "images": [{"id": 7, "file_name": f"images/{split}/a.png", "width": 60, "height": 40}],
            "categories": [{"id": 3, "name": box}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [20, 10, 30, 20]}],
        }
        (root / f"boxes_{split}.json").write_text(json.dumps(found))
    return BoxData(root=root, areas="folder", batch_size=2, crop_size=(64, 96), workers=0)


@pytest.mark.parametrize("head", [LRASPP(), LRASPPPlus(channels=32)])
@pytest.mark.parametrize("tail", ["full", "torchvision"])
def test_one_pass_gives_what_two_nets_give(head, tail):
    backbone = replace(BACKBONE, tail=tail)
    norm = {"mean": BOTH.mean, "std": BOTH.std, "bn_momentum": 0.1}
    both = build(replace(BOTH, backbone=backbone, areas=head), 5).eval()
    areas, boxes = (
        build(Model(backbone=backbone, head=head, **norm), 5),
        build(replace(BOTH, backbone=backbone, areas=None), 5),
    )
    own = both.state_dict()
    areas.load_state_dict(
        {n.replace("areas.", "head."): t for n, t in own.items() if not n.startswith(("head", "extra"))}
    )
    boxes.load_state_dict({name: tensor for name, tensor in own.items() if not name.startswith("areas.")})
    image = torch.randint(0, 256, (2, 3, 97, 131), dtype=torch.uint8)
    with torch.inference_mode():
        found, anchors, pixels = both(image)
        assert torch.equal(pixels, areas.eval().low_logits(image))
        assert all(map(torch.equal, (found, anchors), boxes.eval()(image)))


def test_a_net_with_both_heads_is_read_as_it_was_saved(tmp_path):
    net = build(BOTH, 19)
    checkpoint.save(net, tmp_path / "both.safetensors")
    again, card = checkpoint.load_net(tmp_path / "both.safetensors", Detector)
    assert net_name(again.config).startswith("SSDLite and LRASPP on MobileNetV3-small")
    assert again.config == BOTH and card.classes == cityscapes_classes()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    finder = load_detector(tmp_path / "both.safetensors", device="cpu", size=(64, 96))
    rows, labels = finder.look(image, 0.0)
    assert rows.shape[1] == 6 and labels.shape == (50, 70) and labels.dtype == np.uint8
    assert np.array_equal(finder.rows(image, 0.0), rows)


def test_boxes_and_labels_get_one_list_of_classes(tmp_path):
    boxes = open_boxes(street(tmp_path), "train")
    assert boxes.classes.names == boxes.areas.classes.names == ("road", "car")
    assert boxes.boxes[0].tolist() == [[20, 10, 50, 30, 1, 0]]
    assert (boxes.areas.read(0)[1] == 1).sum() == 600


def test_a_category_that_no_label_has_follows_them(tmp_path):
    boxes = open_boxes(street(tmp_path, box="pothole"), "train")
    assert boxes.classes.names == ("road", "car", "pothole")
    assert boxes.boxes[0][0, 4] == 2


def test_images_without_labels_are_refused_and_labels_without_boxes_told(tmp_path):
    data = street(tmp_path)
    write_png(tmp_path / "images/val/b.png", np.zeros((40, 60, 3), np.uint8))
    write_png(tmp_path / "labels/val/b.png", np.zeros((40, 60), np.uint8))
    with pytest.warns(Segmv3Warning, match=r"boxes_val.json: 1 image with a label is not in it and left out"):
        assert len(open_boxes(data, "val").areas) == 1
    (tmp_path / "other").mkdir()
    write_png(tmp_path / "other/c.png", np.zeros((40, 60, 3), np.uint8))
    content = json.loads((tmp_path / "boxes_val.json").read_text())
    content["images"][0]["file_name"] = "other/c.png"
    (tmp_path / "boxes_val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1 image of .*boxes_val.json has no label .*first: other/c.png"):
        open_boxes(data, "val")


def test_labels_move_with_their_boxes(tmp_path):
    """Wherever crops, mirrors and borders put the car, its pixels fill its box; what is no picture is ignored."""
    data = street(tmp_path)
    boxes, seen = open_boxes(data, "train"), 0
    for epoch in range(30):
        image, target, _ = BoxSamples(boxes, data, 0)[epoch, 0]
        assert isinstance(target, BoxesAndLabels)
        assert target.labels.shape == image.shape[:2] == (64, 96) and target.labels.dtype == torch.uint8
        assert set(target.labels.unique().tolist()) <= {0, 1, 255}
        (row,) = target.boxes
        if row[4] == 1:
            rows, columns = np.nonzero(target.labels.numpy() == 1)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(row[:4], around, atol=3)  # a pixel of the file is up to 3 here
            seen += 1
    assert seen > 20


def test_no_image_of_another_size_than_its_boxes_say_is_learnt_or_scored(tmp_path):
    """The check before a run decodes 1,000 images; the sizes of all others are seen when they are read."""
    data = street(tmp_path)
    content = json.loads((tmp_path / "boxes_val.json").read_text())
    content["images"][0]["width"] = 120
    (tmp_path / "boxes_val.json").write_text(json.dumps(content))
    boxes = open_boxes(data, "val")
    with pytest.raises(DataError, match="a.png is 60 x 40, but .*boxes_val.json says 120 x 40"):
        BoxSamples(boxes, data, 0)[0, 0]
    with pytest.raises(DataError, match="a.png is 60 x 40, but .*boxes_val.json says 120 x 40"):
        count_boxes(build(BOTH, 2).eval(), boxes, (64, 96), device=torch.device("cpu"), confusion=ConfusionMatrix(2))


def test_a_check_reads_the_labels_too(tmp_path):
    street(tmp_path)
    write_png(tmp_path / "labels/val/a.png", np.full((40, 60), 9, np.uint8))
    (tmp_path / "tiny.py").write_text(
        "from pathlib import Path\nfrom segmv3.config import LRASPP, BoxData, Detection, Detector, Schedule\n"
        f'data = BoxData(root=Path({str(tmp_path)!r}), areas="folder")\n'
        "config = Detection(model=Detector(areas=LRASPP()), data=data, schedule=Schedule(steps=4))\n"
    )
    assert main(["detect", "check", str(tmp_path / "tiny.py")]) == 2


def test_smaller_labels_lie_where_the_smaller_image_does(tmp_path):
    """A car whose image is as bright as its label: at an eighth of the size both show it in the same place."""
    data = replace(street(tmp_path), crop_size=(32, 32), zoom_in=0, zoom_out=0, flip=0, jitter=0)
    labels = np.zeros((256, 256), np.uint8)
    labels[:, 90:198] = 1
    samples = BoxSamples(open_boxes(data, "train"), data, 0)
    image, target = samples._made(np.repeat(255 * labels[..., None], 3, 2), np.zeros((0, 6), np.float32), labels)
    assert torch.equal(target.labels, (image[..., 0] > 127).byte())


def test_a_batch_is_cut_and_moved_as_one_tensor_is():
    batch = BoxesAndLabels(torch.arange(20.0).reshape(4, 1, 5), torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1))
    first, second = batch.chunk(2)
    assert torch.equal(second.labels.flatten(), torch.tensor([2, 3])) and torch.equal(first.boxes, batch.boxes[:2])
    assert isinstance(batch.to(torch.device("cpu")), BoxesAndLabels)


def test_head_and_labels_belong_together(city):
    settings = load_config("detect/quickstart_areas", kind=Detection)
    for change, text in (
        ({"data": replace(settings.data, areas=None)}, "data.areas: is missing"),
        ({"model": replace(settings.model, areas=None)}, "model.areas: is missing"),
        ({"loss": replace(settings.loss, auxiliary=0.4)}, "loss.auxiliary: must be 0"),
        (
            {
                "model": replace(settings.model, areas=None),
                "data": replace(settings.data, areas=None),
                "loss": Loss(dice=1.0),
            },
            "loss: is for model.areas",
        ),
        ({"model": replace(settings.model, areas=LRASPP(channels=0))}, "model.areas.channels: must lie"),
    ):
        with pytest.raises(ConfigError, match=text):
            replace(settings, **change)
    data = replace(settings.data, root=city)
    with pytest.raises(ModelError, match="a batch of at least 2"):
        replace(settings, data=data).task().build(1)
    with pytest.raises(ConfigError, match="loss.class-weights: 2 numbers for 19 classes"):
        replace(settings, data=data, loss=Loss(class_weights=(1.0, 2.0))).task()


def test_labels_that_teach_nothing_end_a_run_before_it_begins(tmp_path):
    data, said = street(tmp_path, box="pothole"), list[str]()
    settings = Detection(model=BOTH, data=data, schedule=Schedule(steps=4))
    settings.task().check(lambda _: nullcontext(lambda *_: None), said.append)
    absent = "1 class is absent (cannot be learned): pothole"
    assert f"data: labels of 'train': {absent}" in said
    for split in ("train", "val"):
        write_png(tmp_path / "labels" / split / "a.png", np.full((40, 60), 255, np.uint8))
    with pytest.raises(DataError, match="no pixel of 'train' is labelled"):
        settings.task().check(lambda _: nullcontext(lambda *_: None), said.append)


def test_rows_of_both_heads_are_copied_by_the_names_of_classes(tmp_path):
    theirs, ours = ("road", "car", "sky"), ("sky", "road", "bus", "car")
    donor, net = build(BOTH, 3), build(BOTH, 4)
    checkpoint.save(donor, tmp_path / "donor.safetensors", classes=theirs)
    record = start_from(net, str(tmp_path / "donor.safetensors"), lambda _: None, ours)
    assert record["classes_kept"] == ["sky", "road", "car"] and record["classes_new"] == ["bus"]
    given, own = (each.areas.state_dict()["deep_classifier.weight"] for each in (donor, net))
    assert torch.equal(own[[0, 1, 3]], given[[2, 0, 1]])
    given, own = (each.head.classification_head.module_list[0][1].weight for each in (donor, net))
    given, own = given.unflatten(0, (-1, 4)), own.unflatten(0, (-1, 5))
    assert torch.equal(own[:, [0, 1, 2, 4]], given[:, [0, 3, 1, 2]])


@pytest.fixture
def config(city, tmp_path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(f"""from pathlib import Path
from segmv3.config import LRASPP, AdamW, BoxData, Detection, Detector, Loss, MobileNetV3, Schedule

config = Detection(
    model=Detector(
        backbone=MobileNetV3(size="small", width=0.35), scales=(0.1, 0.9), bn_momentum=0.1, areas=LRASPP(channels=16)
    ),
    data=BoxData(root=Path({str(city)!r}), areas="cityscapes", batch_size=4, crop_size=(64, 96), workers=0),
    loss=Loss(class_weights="balanced"),
    optim=AdamW(lr=1e-3),
    schedule=Schedule(steps=4, eval_every=2, save_every=2, log_every=1, accumulate=2),
)
""")
    return path


def test_train_evaluate_predict(config, city, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["detect", "train", str(config), "--run", str(run), "--threads", "1", "--device", "cpu"]) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scored = [entry for entry in log if entry["event"] == "eval"]
    assert [entry["step"] for entry in scored] == [2, 4]
    assert all(entry["mean"] == pytest.approx((entry["map"] + entry["miou"]) / 2) for entry in scored)
    page = (run / "report.html").read_text()
    assert "SSDLite and LRASPP on MobileNetV3-small" in page and "digest of the scored labels {" not in page
    assert "Boxes and areas by class" in page and "mIoU of the areas" in page
    assert "of the areas class weights balanced, cross entropy 1" in page

    weights, output = str(run / "best.safetensors"), tmp_path / "scores.json"
    capsys.readouterr()
    assert main(["detect", "evaluate", str(config), "--weights", weights, "--output", str(output)]) == 0
    assert "mIoU of the areas" in capsys.readouterr().out
    scores, best = json.loads(output.read_text()), max(scored, key=lambda entry: entry["mean"])
    assert scores["miou"] == pytest.approx(best["miou"]) and scores["map"] == pytest.approx(best["map"], abs=1e-6)
    assert scores["areas"].keys() == set(cityscapes_classes().names)

    source, found = str(city / "leftImg8bit/val"), tmp_path / "found"
    arguments = ["detect", "predict", source, "--weights", weights, "-o", str(found), "--labels"]
    assert main(arguments) == 0
    assert len(list(found.rglob("*_boxes.png"))) == len(list(found.rglob("*_labels.png"))) == 2
    picture = next(Path(source).rglob("*.png"))
    labels = read_image(next(found.rglob(f"{picture.stem}_labels.png")))[..., 0]
    assert np.array_equal(labels, load_detector(weights, device="cpu").look(read_image(picture))[1])
    drawn = read_image(next(found.rglob(f"{picture.stem}_boxes.png")))
    assert (drawn != read_image(picture)).any(2).mean() > 0.9  # the areas are coloured


def test_nets_with_and_without_areas_are_told_apart(config, city, tmp_path, capsys):
    both, boxes = tmp_path / "both.safetensors", tmp_path / "boxes.safetensors"
    checkpoint.save(build(BOTH, 19), both)
    checkpoint.save(build(replace(BOTH, areas=None), 19), boxes)
    picture = str(next((city / "leftImg8bit/val").rglob("*.png")))
    out = ["-o", str(tmp_path / "o")]
    for arguments, text in (
        (
            ["detect", "evaluate", str(config), "--weights", str(boxes)],
            "draws boxes alone; score it with --data.areas None",
        ),
        (["detect", "evaluate", str(config), "--weights", str(both), "--data.areas", "None"], "labels areas too"),
        (["detect", "predict", picture, "--weights", str(boxes), "--labels", *out], "leave out --labels"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1, error
    assert not (tmp_path / "o").exists()

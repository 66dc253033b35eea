"""`segmv3 evaluate` on data in Cityscapes layout: all scores, several processes, and data that cannot be scored."""

import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import segmv3
from benchmarks.table import _mode
from segmv3 import official
from segmv3.cli import main
from segmv3.config import Config, Data, Model, Schedule
from segmv3.data.datasets import open_dataset
from segmv3.data.loader import shard
from segmv3.errors import DataError, EvaluationError, ResourceError, Segmv3Error
from segmv3.evaluation.counting import ImageCounts, count_images, merge
from segmv3.evaluation.scores import scores, scores_of_images
from segmv3.images import read_ids, write_png
from segmv3.inference import MULTI_SCALES, multi_scale_flip
from segmv3.labels import IGNORE, cityscapes_classes
from segmv3.metrics import ConfusionMatrix
from segmv3.mini_city import write_mini_city
from segmv3.models.zoo import create_model
from segmv3.report.tables import scores_table, summary
from segmv3.results.calibration import Calibration
from segmv3.results.result import Result
from segmv3.results.uncertainty import bootstrap_miou
from segmv3.screen import Screen
from segmv3.training.segmentation import SegmentationTask
from segmv3.weights.opening import open_segmenter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini-city of 5 validation scenes; two of them moved to another town."""
    root = tmp_path_factory.mktemp("city") / "data"
    write_mini_city(root, train=1, val=5, size=(64, 128))
    for file in sorted((root).glob("*/val/*/*_00000[34]_*")):
        town = file.parents[1] / "oldport"
        town.mkdir(exist_ok=True)
        file.rename(town / file.name.replace(file.parent.name, town.name))
    return root


@pytest.fixture(scope="module")
def weights(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net that has looked at one scene for long enough to predict several classes."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    image, labels = open_dataset(Data(dataset="cityscapes", root=city), "train").read(0)
    torch.manual_seed(0)
    net = create_model("lraspp_small_d8", 19).train()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    target = torch.from_numpy(labels)[None].repeat(2, 1, 1).long()
    steps = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(25):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(net(pixels), target, ignore_index=255).backward()
        steps.step()
    segmv3.save(net, path, classes=cityscapes_classes())
    return path


@pytest.fixture
def flags(city: Path, weights: Path) -> list[str]:
    config = Path(__file__).parents[1] / "configs" / "quickstart.py"
    return ["evaluate", str(config), "--data.root", str(city), "--weights", str(weights), "--device", "cpu"]


@pytest.fixture
def copy(city: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(city, tmp_path / "copy"))


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err and not printed.out
    return printed.err.strip()


def test_all_scores_of_one_command(flags, city, weights, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert main([*flags, "--official", "--boundary", "--output", str(out)]) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    for says in ("agrees: 28 IoU", "boundary F-score", "category mIoU", "oldport", "frequency-weighted IoU"):
        assert says in printed
    assert result["official"]["largest_difference"] <= 1e-9
    assert result["official"]["miou"] == pytest.approx(result["miou"], abs=1e-9)
    assert (result["images"], result["size"], result["split"]) == (5, [64, 128], "val")
    assert len(result["weights_sha256"]) == 64 and result["mean_iiou"] is not None
    assert np.count_nonzero(np.sum(result["confusion_matrix"], axis=0)) > 3  # else this test says little
    # the sparse counts of the images give everything back
    names = [pair.name for pair in open_dataset(Data(dataset="cityscapes", root=city), "val").pairs]
    assert [image["name"] for image in result["per_image"]] == names
    total, towns = ConfusionMatrix(19), {"minihaven": ConfusionMatrix(19), "oldport": ConfusionMatrix(19)}
    for image in result["per_image"]:
        total.add(image["counts"])
        towns[image["name"].partition("_")[0]].add(image["counts"])
    assert total.matrix.tolist() == result["confusion_matrix"] and total.miou == result["miou"]
    assert {town["name"]: town["miou"] for town in result["cities"]} == {k: v.miou for k, v in towns.items()}
    assert sum(town["images"] for town in result["cities"]) == 5
    for key in ("category_miou", "frequency_weighted_iou", "mean_boundary_iou", "mean_boundary_f_score", "mean_iiou"):
        assert 0 <= result[key] <= 100 and all(0 <= town[key] <= 100 for town in result["cities"])
    # the same numbers from the predictions themselves
    predict = segmv3.load(weights, device="cpu", backend="torch")
    again = ConfusionMatrix(19)
    for pair in open_dataset(Data(dataset="cityscapes", root=city), "val").pairs:
        again.update(predict(segmv3.read_image(pair.image)), pair.table.to_train_ids(read_ids(pair.label), pair.label))
    assert again.matrix.tolist() == result["confusion_matrix"]


def test_nothing_is_left_in_the_temporary_folder(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main([*flags, "--official", "--limit", "1"]) == 0
    monkeypatch.setattr(official, "agreement", refuse)
    assert main([*flags, "--official", "--limit", "1"]) == 4
    assert not list(tmp_path.iterdir())


def refuse(*_: object) -> None:
    raise official.OfficialError("no")


def test_a_disagreement_writes_and_prints_no_score(flags, tmp_path, monkeypatch, capsys):
    """The script reads another picture than we predicted: exit 4, one line, no table, no file."""
    monkeypatch.setattr(official, "write_prediction", write_other)
    out = tmp_path / "scores.json"
    says = fails(capsys, *flags, "--official", "--limit", "1", "--output", out, code=4)
    assert says.startswith("official: IoU of ") and "not reported" in says and not out.exists()


def write_other(folder: Path, name: str, prediction: np.ndarray) -> None:
    write_png(official.prediction_file(folder, name), official.tables().label_ids[np.roll(prediction, 9, axis=0)])


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["segmv3.evaluation.scores", "segmv3.weights.opening", "segmv3.report.tables"]
)  # torch, once


def run_processes(arguments: list[str], count: int, folder: Path) -> list[tuple[int | None, str, str]]:
    """The command as torchrun would start it, `count` times: (exit code, output, errors) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    said = [[folder / f"{rank}.{kind}" for kind in ("out", "err")] for rank in range(count)]
    running = [SERVER.Process(target=run_one, args=(arguments, *a)) for a in zip(ranks, said, strict=True)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        process.kill()
    return [(p.exitcode, *(file.read_text() for file in files)) for p, files in zip(running, said, strict=True)]


def run_one(arguments: list[str], environment: dict[str, str], said: list[Path]) -> None:
    os.environ.update(environment)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.exit(main(arguments))


@pytest.mark.slow
def test_two_and_three_processes_give_the_numbers_of_one(flags, tmp_path):
    results = []
    for count in (1, 2, 3):  # 5 images: neither divides
        out = tmp_path / f"{count}.json"
        arguments = [*flags, "--official", "--boundary", "--calibration", "--threads", "1", "--output", str(out)]
        done = run_processes(arguments, count, tmp_path)
        assert [code for code, _, _ in done] == [0] * count, done
        assert "agrees: 28 IoU" in done[0][1] and all(printed == "" for _, printed, _ in done[1:])
        results.append(json.loads(out.read_text()))
        assert results[-1].pop("processes") == count
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
def test_bad_data_on_another_process_is_one_line_of_the_first(flags, copy, tmp_path):
    label = sorted((copy / "gtFine" / "val").glob("*/*_labelIds.png"))[1]  # the second process reads this one
    label.write_bytes(label.read_bytes()[:-30])
    out = tmp_path / "scores.json"
    first, second = run_processes([*flags, "--data.root", str(copy), "--output", str(out)], 2, tmp_path)
    assert (first[0], second[0]) == (2, 2) and not out.exists()
    assert first[2].strip().splitlines()[-1].startswith(f"data: {label} is damaged")
    assert "damaged" not in second[2]


def image(index: int, name: str) -> ImageCounts:
    return ImageCounts(index, name, (4, 4), ((0, 0, 16),))


def test_every_image_is_counted_once_or_nothing_is_reported(city):
    dataset = open_dataset(Data(dataset="cityscapes", root=city), "val")
    images = [image(i, pair.name) for i, pair in enumerate(dataset.pairs)]
    for world in (1, 2, 3, 7):
        shares = [[images[i] for i in shard(5, rank, world)] for rank in range(world)]
        assert merge(shares, dataset, 5) == images
    with pytest.raises(EvaluationError, match="0 are missing and 1 were counted again"):
        merge([images, images[:1]], dataset, 5)
    with pytest.raises(EvaluationError, match=f"1 are missing and 0 .*{images[2].name}"):
        merge([images[:2], images[3:]], dataset, 5)
    with pytest.raises(EvaluationError, match="they read different data"):
        merge([images[:2], [image(2, "other"), *images[3:]]], dataset, 5)


def test_the_order_of_the_work_changes_no_digit(city, weights):
    dataset = open_dataset(Data(dataset="cityscapes", root=city), "val")
    net = open_segmenter(weights)[0]

    def labels_of(pixels: torch.Tensor) -> torch.Tensor:
        return net.low_logits(pixels).argmax(1).to(torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)

    order = [list(range(5)), [4, 2, 0], [3, 1]]
    runs = [list(count_images(labels_of, dataset, device=CPU, indices=o, boundary=True, instances=True)) for o in order]
    one, other = (
        scores_of_images(merge(shares, dataset, 5), dataset, multi_scale_flip=False) for shares in (runs[:1], runs[1:])
    )
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize(
    ("prediction", "says"),
    [
        (torch.zeros((1, 64, 127), dtype=torch.uint8), "the prediction for .*labelIds.png is 127x64 but its .* 128x64"),
        (torch.full((1, 64, 128), 19, dtype=torch.uint8), r"labelIds.png cannot be scored: prediction has ids \[19\]"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(prediction, says, city):
    dataset = open_dataset(Data(dataset="cityscapes", root=city), "val")
    with pytest.raises(DataError, match=says):
        list(count_images(lambda _: prediction, dataset, device=CPU))


def test_without_instance_files_iiou_is_not_available(flags, copy, tmp_path, capsys):
    for file in copy.glob("gtFine/val/*/*_instanceIds.png"):
        file.unlink()
    out = tmp_path / "scores.json"
    assert main([*flags, "--data.root", str(copy), "--output", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["mean_iiou"] is None and "iiou" not in result["classes"][0]
    assert "iIoU is not available" in capsys.readouterr().out


def test_data_that_cannot_be_scored_is_one_line(flags, copy, capsys):
    flags = [*flags, "--data.root", str(copy)]
    labels = sorted((copy / "gtFine" / "val").glob("*/*_labelIds.png"))
    ids = np.array(Image.open(labels[0]))
    for broken, says in ((np.where(ids == 7, 77, ids), "has ids {77}"), (ids[:, :-2], "must have the same size")):
        write_png(labels[0], broken.astype(np.uint8))
        assert says in fails(capsys, *flags)
    write_png(labels[0], ids)
    instances = labels[0].with_name(labels[0].name.replace("labelIds", "instanceIds"))
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(instances)
    assert "must have the same size" in fails(capsys, *flags)
    instances.write_bytes(b"")
    assert f"{instances} cannot be opened as an image" in fails(capsys, *flags)
    for path in labels:
        write_png(path, np.zeros((64, 128), np.uint8))
        path.with_name(path.name.replace("labelIds", "instanceIds")).unlink()
    assert "no pixel of 'val' is labelled" in fails(capsys, *flags)
    shutil.rmtree(copy / "leftImg8bit" / "val")
    assert "found 0 images under" in fails(capsys, *flags)


def test_the_test_split_is_called_by_its_name(flags, copy, capsys):
    flags = [*flags, "--data.root", str(copy), "--split", "test"]
    assert "found 0 images" in fails(capsys, *flags)
    (copy / "leftImg8bit" / "val").rename(copy / "leftImg8bit" / "test")
    assert "is the test split and has no labels" in fails(capsys, *flags)
    (copy / "gtFine" / "val").rename(copy / "gtFine" / "test")
    for path in copy.glob("gtFine/test/*/*_labelIds.png"):  # as Cityscapes ships it: void and nothing else
        write_png(path, np.full((64, 128), 3, np.uint8))
    says = fails(capsys, *flags)
    assert "is the test split and has only void labels" in says and "use --split val" in says


def test_the_script_needs_data_in_its_own_form(flags, copy, folder, tmp_path, capsys):
    for path in copy.glob("gtFine/val/*/*_labelIds.png"):
        path.unlink()
    says = fails(capsys, *flags, "--data.root", copy, "--official")
    assert "--official needs Cityscapes' *_labelIds.png" in says
    four = tmp_path / "four.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 4), four, classes=open_dataset(folder_data(folder), "val").classes)
    own = [*flags, "--data.dataset", "folder", "--data.root", str(folder), "--weights", str(four)]
    assert "--official is for data in Cityscapes layout" in fails(capsys, *own, "--official")
    out = tmp_path / "own.json"
    assert main([*own, "--boundary", "--output", str(out)]) == 0
    result = json.loads(out.read_text())
    assert "cities" not in result and "categories" not in result and len(result["per_image"]) == 3


def folder_data(folder: Path) -> Data:
    return Data(dataset="folder", root=folder)


def test_interval_calibration_and_page(flags, copy, weights, tmp_path, capsys):
    for file in sorted(copy.glob("*/val/minihaven/minihaven_000000_*")):  # a sixth image: enough for an interval
        shutil.copy(file, file.with_name(file.name.replace("_000000_", "_000009_")))
    out, page = tmp_path / "scores.json", tmp_path / "page" / "evaluation.html"
    flags = [*flags, "--data.root", str(copy), "--output", str(out), "--calibration", "--report", str(page.parent)]
    assert main(flags) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    low, high = bootstrap_miou(Result.read(out).counts)
    assert result["miou_interval"] == [low, high] and low <= result["miou"] <= high
    assert f"mIoU {result['miou']:.2f} % (95 % interval of the images: {low:.1f} to {high:.1f})" in printed
    assert "6 images of mini-city val, 64 x 128, single scale" in printed and result["weights_sha256"] in printed
    # the probabilities themselves, at once instead of in bands
    net, expected = open_segmenter(weights)[0], Calibration()
    dataset = open_dataset(Data(dataset="cityscapes", root=copy), "val")
    for pixels, truth in map(dataset.read, range(6)):
        with torch.inference_mode():
            logits = net(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        probability, known = torch.softmax(logits, 1)[0].numpy(), truth != IGNORE
        expected.add(probability.max(0)[known], (probability.argmax(0) == truth)[known])
    assert result["calibration"]["pixels"] == expected.pixels.sum() == np.sum(result["confusion_matrix"])
    assert result["calibration"]["ece"] == pytest.approx(expected.ece, abs=1e-3)
    assert f"ECE {expected.ece:.2f} % over" in printed
    assert segmv3.read_image(tmp_path / "scores-reliability.png").shape[1] == 1000
    text = page.read_text()
    assert (
        len(re.findall("<p><b>[^<]+</b> mIoU", text)) == 6
        and "figures/" not in text
        and f"{low:.1f} to {high:.1f}" in text
    )
    out.unlink()
    assert "scores-reliability.png exists" in fails(capsys, *flags)
    (tmp_path / "scores-reliability.png").unlink()
    assert f"{page} exists; choose another --report" in fails(capsys, *flags)
    assert page.read_text() == text and not out.exists()


def test_calibration_needs_a_file_and_a_single_scale(flags, tmp_path, capsys):
    assert "--calibration needs --output" in fails(capsys, *flags, "--calibration")
    flags = [*flags, "--calibration", "--output", str(tmp_path / "s.json")]
    for other in (["--multi-scale-flip"], ["--sliding-window", "32", "64"]):
        assert "--calibration is for single scale" in fails(capsys, *flags, *other)
    assert not list(tmp_path.iterdir())


def test_few_images_have_no_interval_and_windows_are_named(flags, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert main([*flags, "--limit", "2", "--sliding-window", "32", "64", "--output", str(out)]) == 0
    assert json.loads(out.read_text())["miou_interval"] is None
    printed = capsys.readouterr().out
    assert "interval" not in printed and "single scale" not in printed
    assert "64 x 128, windows of 32 x 64, stride 21 x 42" in printed


def test_training_refuses_bad_files_of_both_splits_at_once(copy):
    labels = [sorted((copy / "gtFine" / split).glob("*/*_labelIds.png"))[0] for split in ("train", "val")]
    for label in labels:
        label.write_bytes(label.read_bytes()[:-30])
    data = Data(dataset="cityscapes", root=copy)
    task = SegmentationTask(Config(model=Model(), data=data, schedule=Schedule(steps=1)))
    titles = []

    def progress_of(title: str):
        titles.append(title)
        return nullcontext(lambda done, total: None)

    with pytest.raises(DataError, match="2 files in 'train' and 'val' cannot be used") as raised:
        task.check(progress_of, print)
    assert all(label.name in str(raised.value) for label in labels) and titles == ["check train", "check val"]


# --- another size of the input, exported files ---


def two_steps(weights: Path, image: np.ndarray, shown: tuple[int, int]) -> np.ndarray:
    """The net at another size in plain torch: its logits enlarged to its input, then to the image."""
    copy = cv2.resize(image, shown[::-1], interpolation=cv2.INTER_LINEAR)
    net = open_segmenter(weights)[0]
    with torch.inference_mode():
        logits = net(torch.from_numpy(copy).permute(2, 0, 1)[None])
    full = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
    return full.argmax(1)[0].numpy()


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (["--scale", "0.5"], (32, 64)),
        (["--scale", "1.5"], (96, 192)),
        pytest.param(["--size", "48", "80"], (48, 80), marks=pytest.mark.slow),
    ],
)
def test_the_net_sees_another_size_and_is_scored_at_that_of_the_truth(
    asked, shown, flags, city, weights, tmp_path, capsys
):
    out = tmp_path / "scores.json"
    assert main([*flags, *asked, "--official", "--boundary", "--calibration", "--output", str(out)]) == 0
    result, expected = json.loads(out.read_text()), ConfusionMatrix(19)
    for pair in open_dataset(Data(dataset="cityscapes", root=city), "val").pairs:
        truth = pair.table.to_train_ids(read_ids(pair.label), pair.label)
        expected.update(two_steps(weights, segmv3.read_image(pair.image), shown).astype(np.uint8), truth)
    moved = np.abs(expected.matrix - np.array(result["confusion_matrix"])).sum() / 2
    assert moved <= 1e-4 * expected.matrix.sum()  # rounding where two classes tie
    assert (result["size"], result["input_size"]) == ([64, 128], list(shown))
    assert result["calibration"]["pixels"] == expected.matrix.sum()
    said = " ".join(capsys.readouterr().out.split())
    assert f"64 x 128, single scale, net at {shown[0]} x {shown[1]}" in said
    assert f"The net saw images at {shown[0]} x {shown[1]}" in said


def test_scale_one_changes_nothing_and_copies_are_of_the_other_size(flags, city, weights, tmp_path):
    def matrix(*asked: str) -> list:
        out = tmp_path / "scores.json"
        assert main([*flags, *asked, "--limit", "2", "--overwrite", "--output", str(out)]) == 0
        return json.loads(out.read_text())["confusion_matrix"]

    assert matrix("--scale", "1") == matrix()
    net, expected = open_segmenter(weights)[0], ConfusionMatrix(19)
    dataset = open_dataset(Data(dataset="cityscapes", root=city), "val")
    for image, truth in (dataset.read(0), dataset.read(1)):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        with torch.inference_mode():
            found = multi_scale_flip(net.low_logits, pixels, scales=[s / 2 for s in MULTI_SCALES])
        expected.update(found.argmax(1)[0].numpy(), truth)
    assert np.abs(np.array(matrix("--scale", "0.5", "--multi-scale-flip")) - expected.matrix).sum() <= 4


def test_sizes_that_cannot_be_meant_are_one_line(flags, capsys):
    for asked, says in (
        (["--scale", "0"], "--scale is 0; it must be above 0"),
        (["--scale", "nan"], "--scale is not finite"),
        (["--size", "0", "5"], "--size is 0 5"),
        (["--size", "100000", "100000"], "at most 179,000,000 pixels"),
        (["--size", "32", "64", "--scale", "0.5"], "choose one of them"),
        (["--sliding-window", "32", "64", "--scale", "0.5"], "--sliding-window cuts images as they are"),
    ):
        assert says in fails(capsys, *flags, *asked)


def test_results_of_other_sizes_say_so_beside_each_other(flags, tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert main([*flags, "--output", str(a)]) == 0 and main([*flags, "--scale", "0.5", "--output", str(b)]) == 0
    assert "input_size" not in json.loads(a.read_text())
    capsys.readouterr()
    assert main(["compare", str(a), str(b)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a and b differ in: input_size that of the images and 32x64; input_scale none and 0.5" in said
    assert "64x128, single scale, net at 32 x 64 (scale 0.5)" in said
    assert _mode(Result.read(b)) == "other"  # no row of a table at full size


@pytest.fixture(scope="module")
def exports(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for name, to, *more in (
        ("any.onnx", "onnx"),
        ("any.xml", "openvino"),
        ("fixed.onnx", "onnx", "--size", "32", "64"),
        ("labels.onnx", "onnx", "--output-kind", "labels"),
    ):
        pytest.importorskip("onnxruntime" if to == "onnx" else "openvino")
        assert main(["export", str(weights), "--to", to, "-o", str(folder / name), "--limit", "1", *more]) == 0
    return folder


@pytest.mark.slow
def test_exported_files_are_scored(flags, weights, exports, tmp_path, capsys):
    def score(path: Path, *asked: str) -> dict:
        out = tmp_path / "scores.json"
        own = [*flags, "--weights", str(path), "--limit", "2", "--overwrite", "--output", str(out)]
        assert main([*own, *asked]) == 0
        return json.loads(out.read_text())

    for asked in ([], ["--multi-scale-flip"], ["--scale", "0.5", "--calibration"], ["--sliding-window", "32", "64"]):
        torch_says, total = score(weights, *asked), None
        for name in ("any.onnx", "any.xml"):
            found = score(exports / name, *asked)
            total = np.sum(torch_says["confusion_matrix"])
            moved = np.abs(np.subtract(found["confusion_matrix"], torch_says["confusion_matrix"])).sum() / 2
            assert moved <= 1e-3 * total
            assert found["weights"].endswith(name) and found["precision"] == "fp32"
            assert found["runtime"] == {"any.onnx": "onnxruntime", "any.xml": "openvino"}[name]
            assert found["export"]["source_sha256"] == torch_says["weights_sha256"] != found["weights_sha256"]
    capsys.readouterr()
    assert score(exports / "fixed.onnx", "--size", "32", "64")["input_size"] == [32, 64]
    assert "onnxruntime fp32" in " ".join(capsys.readouterr().out.split())
    labels = score(exports / "labels.onnx")["confusion_matrix"]
    assert np.abs(np.subtract(labels, score(weights)["confusion_matrix"])).sum() / 2 <= 1e-3 * np.sum(labels)


@pytest.mark.slow
def test_exports_that_cannot_give_it_are_one_line(flags, exports, folder, tmp_path, capsys):
    fixed, labels = ([*flags, "--weights", exports / name] for name in ("fixed.onnx", "labels.onnx"))
    assert "32x64 (height x width) only, not of 64x128; score it with --size 32 64" in fails(capsys, *fixed)
    assert "six sizes" in fails(capsys, *fixed, "--multi-scale-flip")
    calibration = ["--calibration", "--output", tmp_path / "s.json"]
    for asked in (["--scale", "0.5"], ["--multi-scale-flip"], calibration):
        assert "gives labels alone" in fails(capsys, *labels, *asked)
    own = [*flags, "--data.dataset", "folder", "--data.root", folder, "--weights", exports / "any.onnx"]
    assert "19 classes stored, 4 requested" in fails(capsys, *own)
    assert "calculates in fp32, not in bf16" in fails(
        capsys, *flags, "--weights", exports / "any.onnx", "--precision", "bf16"
    )


# --- nothing is lost ---


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("segmv3.report.tables.scores_table", "the tables failed"),
        ("segmv3.report.reliability.reliability", "the plot failed"),
        ("segmv3.report.write_evaluation_page", "the report failed"),
    ],
)
def test_an_output_that_fails_costs_no_other(broken, says, flags, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ValueError("a bracket [/x]")

    monkeypatch.setattr(broken, fail)
    out, page = tmp_path / "scores.json", tmp_path / "page"
    asked = ["--limit", "2", "--calibration", "--report", str(page), "--output", str(out)]
    assert main([*flags, *asked]) == 3
    printed = capsys.readouterr()
    assert printed.err == f"output: {says} (ValueError: a bracket [/x]); the scores are in {out}\n"
    assert len(Result.read(out).names) == 2
    assert (tmp_path / "scores-reliability.png").exists() == ("plot" not in says)
    assert (page / "evaluation.html").exists() == ("report" not in says)
    assert ("mIoU" in printed.out) == ("tables" not in says)


def test_a_result_that_cannot_be_written_is_still_printed(flags, tmp_path, monkeypatch, capsys):
    def full(path: Path, data: bytes) -> None:
        raise ResourceError("the disk is full")

    monkeypatch.setattr("segmv3.files.write_bytes", full)
    assert main([*flags, "--limit", "1", "--output", str(tmp_path / "s.json")]) == 4
    printed = capsys.readouterr()
    assert "the disk is full" in printed.err and "mIoU" in printed.out


def test_a_mean_over_fewer_classes_says_so_beside_itself(city, capsys):
    confusion = ConfusionMatrix(19)
    confusion.add([(i, i, 10) for i in range(19) if i not in (15, 16)])  # bus and train occur nowhere
    result = scores(
        confusion, open_dataset(Data(dataset="cityscapes", root=city), "val"), images=5, multi_scale_flip=False
    )
    assert (result.miou_classes, result.absent) == (17, ("bus", "train"))
    line = summary(replace(result, size=(64, 128)))[0]
    assert line.startswith("mIoU 100.00 % (mean over 17 of 19 classes: bus, train have no pixel in val), mean accuracy")
    Screen().print(scores_table(result))
    assert "mean over 17 of 19" in capsys.readouterr().out


# --- the function ---


def of_command(flags: list[str], tmp_path: Path, *asked: str) -> str:
    out = tmp_path / "scores.json"
    assert main([*flags, "--threads", "1", *asked, "--overwrite", "--output", str(out)]) == 0
    return out.read_text()


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"official": True, "boundary": True, "calibration": True}, ["--official", "--boundary", "--calibration"]),
        ({"limit": 2, "scale": 0.5}, ["--limit", "2", "--scale", "0.5"]),
        ({"limit": 2, "sliding_window": (32, 64)}, ["--limit", "2", "--sliding-window", "32", "64"]),
        ({"limit": 1, "multi_scale_flip": True}, ["--limit", "1", "--multi-scale-flip"]),
    ],
)
def test_the_function_gives_what_the_command_writes(settings, asked, flags, city, weights, tmp_path):
    config = segmv3.load_config(flags[1])
    config = replace(config, data=replace(config.data, root=city))
    told = []
    result = segmv3.evaluate(
        config, weights, device="cpu", threads=1, progress=lambda *what: told.append(what), **settings
    )
    assert replace(result, config=flags[1]).to_json() == of_command(flags, tmp_path, *asked)
    number = settings.get("limit", 5)
    assert [what for what in told if what[0] == "evaluate val"] == [
        ("evaluate val", done, number) for done in range(1, number + 1)
    ]
    assert result.miou == result.counts.miou and Result.from_json(result.to_json()).to_json() == result.to_json()


def test_a_data_set_alone_is_enough(flags, city, weights, tmp_path):
    data = segmv3.load_config(flags[1]).data
    result = segmv3.evaluate(replace(data, root=city), str(weights), limit=1, device="cpu", threads=1)
    assert replace(result, config=flags[1]).to_json() == of_command(flags, tmp_path, "--limit", "1")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limit": 0}, "--limit is 0"),
        ({"scale": 9}, "--scale is 9"),
        ({"size": (8, 8), "scale": 0.5}, "choose one of them"),
        ({"stride": (8, 8)}, "--stride needs --sliding-window"),
        ({"sliding_window": (8, 8), "calibration": True}, "--calibration is for single scale"),
        ({"split": "test"}, "found 0 images"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"weights": "nowhere.onnx"}, "nowhere.onnx does not exist"),
        ({"data": Data(dataset="cityscapes", root=Path("nowhere"))}, "nowhere"),
    ],
)
def test_what_the_function_cannot_score_is_one_error(settings, says, flags, city, weights):
    given = {"data": replace(segmv3.load_config(flags[1]).data, root=city), "weights": weights} | settings
    with pytest.raises(Segmv3Error, match=re.escape(says)) as error:
        segmv3.evaluate(**given, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export", "openvino-int8"])
def test_the_function_scores_exported_files_as_the_command_does(to, flags, city, weights, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime", "torch-export": "torch", "openvino-int8": "nncf"}[to])
    path = tmp_path / {"onnx": "net.onnx", "torch-export": "net.pt2", "openvino-int8": "net.xml"}[to]
    images = []
    if "int8" in to:  # calibration needs eight
        for number, image in enumerate([*city.glob("leftImg8bit/*/*/*.png")] * 2):
            (tmp_path / "images").mkdir(exist_ok=True)
            shutil.copy(image, tmp_path / "images" / f"{number}.png")
        images = ["--images", str(tmp_path / "images")]
    assert main(["export", str(weights), "--to", to, "-o", str(path), "--limit", "1", *images]) == 0
    data = replace(segmv3.load_config(flags[1]).data, root=city)
    if to == "torch-export":
        with pytest.raises(Segmv3Error, match="trust"):
            segmv3.evaluate(data, path)
    result = segmv3.evaluate(data, path, limit=2, threads=1, trust=to == "torch-export")
    own = [flags[0], flags[1], *flags[2:4], "--weights", str(path), *(["--trust"] if to == "torch-export" else [])]
    assert replace(result, config=flags[1]).to_json() == of_command(own, tmp_path, "--limit", "2")
    assert result.export and result.export.output and result.precision == ("int8" if "int8" in to else "fp32")

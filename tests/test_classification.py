"""Pictures in, classes out: folders, crops, the shared loop, scores and the command line."""

import hashlib
import json
import os
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import crash
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as reference
from torchvision.datasets import ImageFolder as TorchvisionFolder

import segmv3
from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import (
    AdamW,
    Classification,
    Classifier,
    Config,
    ImageFolder,
    LRASPPDecoder,
    MobileNetV3,
    RMSProp,
    Schedule,
    load_config,
    to_dict,
)
from segmv3.data import check
from segmv3.data.class_folders import check_pictures, check_same_classes, open_pictures
from segmv3.data.loader import batches as batches_of
from segmv3.data.transforms import transform
from segmv3.data.view import center_crop
from segmv3.errors import CheckpointError, ConfigError, DataError, ModelError, Segmv3Warning
from segmv3.imagenet.scoring import accuracies, count_hits
from segmv3.imagenet.task import class_cross_entropy
from segmv3.imagenet.transforms import PictureSamples, train_transforms
from segmv3.models.zoo import NETS, create_classifier, create_model
from segmv3.training.average import MovingAverage
from segmv3.training.loop import train
from segmv3.training.losses import Seen
from segmv3.training.optim import build_optimizer, lr_at

ROOT = Path(__file__).parents[1]
COLORS = {"apple": (200, 40, 40), "bird": (40, 190, 60), "cat": (50, 60, 200), "dog": (210, 200, 60)}


def picture(color: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 52)) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 25, (*size, 3))
    return Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four classes told by their colour, 6 train and 3 val pictures each, as ILSVRC names them."""
    root = tmp_path / "pictures"
    for split, count in (("train", 6), ("val", 3)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(color, i + 10 * len(split)).save(root / split / name / f"{name}_{i}.JPEG", quality=92)
    return root


@pytest.fixture
def experiment(pictures: Path) -> Classification:
    """A run of 12 steps with everything on that has a state: dropout, average, RMSProp's momentum."""
    return Classification(
        model=Classifier(backbone=MobileNetV3(size="small", width=0.35, family="torchvision"), dropout=0.2),
        data=ImageFolder(
            root=pictures, batch_size=4, crop_size=(32, 32), resize=36, scale_range=(0.5, 1.0), jitter=0.5, workers=0
        ),
        optim=RMSProp(lr=0.003),
        schedule=Schedule(
            steps=12, policy="step", min_lr=0, warmup_steps=2, eval_every=6, save_every=4, log_every=3, ema=0.9
        ),
        label_smoothing=0.1,
    )


def fails(capsys, *arguments: object, code: int = 2) -> str:
    """The one line a failing command prints."""
    assert main([str(a) for a in arguments]) == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err.strip()


# --- files ---


def test_classes_and_order_are_torchvisions(pictures, experiment):
    (pictures / "train" / "bird" / "more").mkdir()
    picture((1, 2, 3), 5).save(pictures / "train" / "bird" / "more" / "x.png")
    for junk in ("._bird_0.JPEG", ".hidden.png", "notes.txt"):
        (pictures / "train" / "bird" / junk).touch()
    with pytest.warns(Segmv3Warning, match=r"train: left out 1 hidden \(first: bird/.hidden.png\)"):
        ours = open_pictures(experiment.data.root, "train")
    (pictures / "train/bird/.hidden.png").unlink()
    theirs = TorchvisionFolder(pictures / "train")
    assert ours.classes == tuple(theirs.classes) == tuple(COLORS)
    known = [(path, target) for path, target in theirs.samples if not Path(path).name.startswith(".")]
    assert {(str(ours.path(i)), ours.read(i)[1]) for i in range(len(ours))} == set(known)
    assert len(ours) == 25 and (np.diff(ours.targets) >= 0).all()
    assert len(pickle.loads(pickle.dumps(ours))) == 25
    (pictures / "train" / "dog" / "dog_5.JPEG").unlink()
    assert open_pictures(experiment.data.root, "train").fingerprint() != ours.fingerprint()


def test_pictures_are_left_out_of_no_class_without_a_word(pictures, experiment):
    folder = pictures / "train"
    whole = len(open_pictures(experiment.data.root, "train"))
    (folder / "bird").rename(pictures / "elsewhere")
    (folder / "bird").symlink_to(pictures / "elsewhere")
    (folder / "bird" / "back").symlink_to(folder)  # leads round
    assert len(open_pictures(experiment.data.root, "train")) == whole
    picture((1, 2, 3), 5).save(folder / "loose.png")
    (folder / "bird" / "a.heic").write_bytes(b"?")
    os.mkfifo(folder / "bird" / "b.png")
    says = r"left out 1 \.heic, 1 no regular file, 1 outside the class folders \(first: bird/a.heic\)"
    with pytest.warns(Segmv3Warning, match=says):
        assert len(open_pictures(experiment.data.root, "train")) == whole
    (folder / "tree").symlink_to(pictures / "gone")
    with pytest.raises(DataError, match="tree is a link to nowhere"):
        open_pictures(experiment.data.root, "train")
    (folder / "tree").unlink()
    (folder / "bi\u200brd").mkdir()
    with pytest.raises(DataError, match=r"U\+200B .*rename the folder"):
        open_pictures(experiment.data.root, "train")


def test_one_class_is_nothing_to_learn(pictures, experiment):
    for path in list((pictures / "val").iterdir())[1:]:
        shutil.rmtree(path)
    with pytest.raises(DataError, match="val has one class"):
        open_pictures(experiment.data.root, "val")


def test_what_is_wrong_with_a_folder_is_named(pictures, experiment, tmp_path):
    def says(root: Path, split: str = "train") -> str:
        with pytest.raises(DataError) as error:
            open_pictures(root, split)
        return str(error.value)

    assert "does not exist" in says(tmp_path / "nowhere")
    assert f"Use --data.root {pictures}." in says(tmp_path) and "(4 folders)" in says(tmp_path)
    assert f"Use --data.root {pictures}." in says(pictures / "train")
    assert "it must hold test/CLASS/*.jpg" in says(pictures, "test")
    assert "'../x' is no split" in says(pictures, "../x")
    loose, packed = tmp_path / "a" / "loose", tmp_path / "b" / "c" / "packed"
    for place in (loose / "train", packed):
        place.mkdir(parents=True)
    picture((0, 0, 0), 0).save(loose / "train" / "x.jpg")
    (packed / "ILSVRC2012_img_train.tar").touch()
    assert "lie loose in it" in says(loose)
    assert "ILSVRC2012_img_train.tar is still packed" in says(packed)
    (pictures / "train" / "eel").mkdir()
    assert "1 class folder holds no image" in says(pictures) and "first: eel" in says(pictures)
    picture((9, 9, 9), 0).save(pictures / "train" / "eel" / "a.jpg")
    with pytest.raises(DataError, match=r"1 only in train \(first: eel\)$"):
        check_same_classes(*(open_pictures(experiment.data.root, split) for split in ("train", "val")))


def test_odd_files_of_imagenet_are_read_and_damaged_ones_named(pictures, experiment):
    folder = pictures / "val" / "cat"
    picture(COLORS["cat"], 0).convert("CMYK").save(folder / "cat_0.JPEG")  # some of ILSVRC's are
    picture(COLORS["cat"], 0).save(folder / "cat_1.JPEG", format="PNG")  # and one is a PNG
    picture(COLORS["cat"], 0).convert("L").save(folder / "cat_2.JPEG")
    val = open_pictures(experiment.data.root, "val")
    check_pictures(val)
    images = [val.read(index)[0] for index in range(6, 9)]
    assert all(image.shape == (40, 52, 3) and image.dtype == np.uint8 for image in images)
    assert np.abs(images[0].mean((0, 1)) - images[1].mean((0, 1))).max() < 12
    (folder / "cat_1.JPEG").write_bytes((folder / "cat_0.JPEG").read_bytes()[:600])
    with pytest.raises(DataError, match=r"cat_1\.JPEG"):
        check_pictures(val)


# --- samples ---


def test_the_centre_crop_is_torchvisions(experiment):
    for size in ((40, 52), (300, 201), (33, 500), (36, 36)):
        image = np.array(picture((90, 120, 40), 1, size))
        for name, mode in (("bilinear", reference.InterpolationMode.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
            mode = reference.InterpolationMode(name)
            preset = reference.Compose([reference.Resize(36, interpolation=mode), reference.CenterCrop(32)])
            ours = center_crop(image, replace(experiment.data, interpolation=name))
            assert np.array_equal(ours, np.array(preset(Image.fromarray(image))))


def test_training_crops_have_the_asked_area_and_one_size(experiment):
    rows, columns = np.mgrid[:200, :250]
    image = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)
    transforms = train_transforms(replace(experiment.data, scale_range=(0.25, 0.5), jitter=0.0))
    mirrored = 0
    for seed in range(60):
        crop, target, _ = transform(transforms, image, 3, None, np.random.default_rng(seed))
        assert crop.shape == (32, 32, 3) and target == 3
        spans = [float(np.ptp(crop[..., axis].astype(int))) * 33 / 32 for axis in (0, 1)]
        assert 0.2 < spans[0] * spans[1] / (200 * 250) < 0.56
        mirrored += int(crop[0, 0, 1] > crop[0, -1, 1])
    assert 15 < mirrored < 45


def digests(experiment: Classification, **changes) -> list[str]:
    data = replace(experiment.data, **changes)
    batches = batches_of(PictureSamples(open_pictures(data.root, "train"), data, 3), data, start=0, stop=7)
    return [hashlib.sha256(i.numpy().tobytes() + t.numpy().tobytes()).hexdigest() for i, t, _ in batches]


def test_batches_do_not_depend_on_workers(experiment):
    whole = digests(experiment)
    assert digests(experiment, workers=2) == whole and len(set(whole)) == 7
    data = experiment.data
    pictures = open_pictures(data.root, "train")
    [(images, targets, colors)] = batches_of(PictureSamples(pictures, data, 3), data, start=6, stop=7)
    assert hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).hexdigest() == whole[6]
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8 and targets.dtype == torch.int64
    assert colors.matrix.shape == (4, 3, 4) and colors.tables is colors.inside is None
    data = replace(data, jitter=0.0)
    [(_, _, colors)] = batches_of(PictureSamples(pictures, data, 3), data, start=6, stop=7)
    assert colors is None


# --- parts of the loop ---


def test_smoothed_loss_is_torchs():
    logits, classes = torch.randn(5, 7), torch.tensor([0, 3, 6, 6, 1])
    total, count = class_cross_entropy(0.1).sums(Seen(logits, classes, logits))
    assert count == 5 and torch.allclose(total / 5, torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, classes))


def test_warm_up_starts_where_it_is_told():
    schedule = Schedule(steps=100, policy="cosine", min_lr=0, warmup_steps=10, warmup_from=0.1)
    rates = [lr_at(step, 0.4, schedule) for step in range(11)]
    assert rates[0] == pytest.approx(0.13) and rates[9:] == [pytest.approx(0.4)] * 2
    with pytest.raises(ConfigError, match="warmup-from"):
        load_config(ROOT / "configs/imagenet/large_dli14.py", ["--schedule.warmup-from", "1"], Classification)


def test_steps_multiply_the_learning_rate():
    schedule = Schedule(steps=100, policy="step", min_lr=0, decay_rate=0.5, decay_every=10, warmup_steps=5)
    assert [lr_at(step, 0.4, schedule) for step in (5, 14, 15, 25)] == [0.4, 0.4, 0.2, 0.1]


def test_rmsprop_is_tensorflows():
    """Mean square from one, epsilon inside the root, learning rate inside the momentum."""
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    optimizer = build_optimizer(net, RMSProp(lr=0.1, alpha=0.9, momentum=0.5, eps=0.01, weight_decay=0.0))
    weight, mean, velocity = 1.0, 1.0, 0.0
    for gradient in (2.0, -1.0, 0.5):
        net.weight.grad = torch.full((1, 2), gradient)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient**2
        velocity = 0.5 * velocity + 0.1 * gradient / (mean + 0.01) ** 0.5
        weight -= velocity
        assert net.weight[0, 0].item() == pytest.approx(weight, rel=1e-6)


def test_the_average_warms_up_and_takes_in_batch_norm():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    average = MovingAverage(net, 0.5, torch.device("cpu"))
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(8):
        net(torch.randn(2, 3, 4, 4))
        with torch.no_grad():
            net[0].weight.add_(1.0)
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            mixed = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            expected[name] = mixed
    for name, value in average.net.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert average.net[1].num_batches_tracked == 8 and not average.net[0].weight.requires_grad


# --- runs ---


@pytest.mark.slow
def test_a_net_learns_colours_and_leaves_what_it_promises(experiment, tmp_path):
    longer = replace(
        experiment,
        optim=AdamW(lr=5e-3),
        data=replace(experiment.data, batch_size=12, jitter=0.0),
        schedule=replace(experiment.schedule, steps=60, policy="cosine", eval_every=30, log_every=10, ema=0.8),
    )
    run = tmp_path / "run"
    best = train(longer, run, device="cpu", threads=1).metrics
    assert best["top1"] >= 75 and best["top5"] is None and best["images"] == 12
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log if e["event"] == "eval"] == [30, 60]
    assert best["top1"] == max(e["top1"] for e in log if e["event"] == "eval")
    model, card = checkpoint.load_net(run / "best.safetensors", Classifier)
    assert card.names == tuple(COLORS) and card.facts["score"]["top1"] == best["top1"]
    assert card.facts["config"]["kind"] == "Classification" and card.facts["step"] == best["step"]
    val = open_pictures(longer.data.root, "val")
    hits = count_hits(model, val, longer.data, device=torch.device("cpu"))
    assert (
        accuracies(hits, val, longer.data)["top1"] == best["top1"]
    )  # the score is that of the kept (averaged) weights
    page = (run / "report.html").read_text()
    assert "top-1" in page and "mIoU" not in page and "apple" in page
    assert train(longer, run, device="cpu").metrics == best  # finished: nothing is done


@pytest.mark.slow
def test_killed_and_resumed_in_the_same_bits(experiment, tmp_path):
    assert crash.run(experiment, tmp_path / "whole") == 0
    run = tmp_path / "run"
    assert crash.run(experiment, run, "between saves", 8) == 9
    assert crash.run(experiment, run) == 0
    assert crash.digest(run) == crash.digest(tmp_path / "whole")
    weights = [checkpoint.read(folder / "best.safetensors").tensors for folder in (run, tmp_path / "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    state = checkpoint.load_state(run / "state")
    assert state is not None and state["average"].keys() == state["model"].keys()
    assert not torch.equal(state["average"]["classifier.weight"], state["model"]["classifier.weight"])


@pytest.mark.slow
def test_segmentation_averages_and_drops_out_exactly_too(config, tmp_path):
    model = replace(NETS["lraspp_small_d8_mmseg"], head=LRASPPDecoder(channels=16, dropout=0.5))
    config = replace(config, model=model, schedule=replace(config.schedule, ema=0.9))
    assert crash.run(config, tmp_path / "whole") == 0
    assert crash.run(config, tmp_path / "run", "between saves", 7) == 9
    assert crash.run(config, tmp_path / "run") == 0
    assert crash.digest(tmp_path / "run") == crash.digest(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_the_check_did_not_see_stops_the_run_with_its_state(experiment, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(check, "_CHECKED", 1)
    path = experiment.data.root / "train" / "cat" / "cat_3.JPEG"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    broken = replace(experiment, data=replace(experiment.data, workers=workers))
    with pytest.raises(DataError) as error:
        train(broken, tmp_path / "run", device="cpu", threads=1)
    steps = checkpoint.saved_steps(tmp_path / "run" / "state")
    kept = f"the state of step {steps[0]} is kept" if steps else "no state was saved yet"
    assert str(error.value).startswith(f"data: {path} ") and str(error.value).endswith(kept)
    path.write_bytes(whole)
    assert train(broken, tmp_path / "run", device="cpu", threads=1).step in (6, 12)


def test_a_batch_too_small_for_batch_norm_stops_before_the_run(experiment, tmp_path):
    with pytest.raises(ModelError, match="batch normalisation needs two"):
        train(replace(experiment, data=replace(experiment.data, batch_size=1)), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


# --- scores ---


def test_top_1_and_top_5_are_the_plain_computation(experiment, tmp_path):
    root = tmp_path / "seven"
    for target in range(7):
        (root / "val" / f"c{target}").mkdir(parents=True)
        for i in range(10):
            color = tuple(int(v) for v in np.random.default_rng([target, i]).integers(0, 255, 3))
            picture(color, i, (36, 36 + i)).save(root / "val" / f"c{target}" / f"{i}.png")
    data = replace(experiment.data, root=root)
    val = open_pictures(data.root, "val")
    torch.manual_seed(1)
    model = create_classifier(experiment.model, 7).eval()
    torch.nn.init.normal_(model.classifier.weight, 0, 1)
    seen: list[tuple[int, int]] = []
    hits = count_hits(
        model, val, data, device=torch.device("cpu"), progress=lambda done, total: seen.append((done, total))
    )
    scores = accuracies(hits, val, data)
    first = five = 0
    for index in range(len(val)):
        image, target = val.read(index)
        pixels = torch.from_numpy(center_crop(image, data)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            order = model(pixels)[0].argsort(descending=True).tolist()
        first += order[0] == target
        five += target in order[:5]
    assert scores["top1"] == pytest.approx(100 * first / 70) and scores["top5"] == pytest.approx(100 * five / 70)
    assert 0 < five < 70 and seen == [(64, 70), (70, 70)]
    parts = sum(count_hits(model, val, data, device=torch.device("cpu"), indices=range(r, 70, 3)) for r in range(3))
    assert torch.equal(parts, hits)
    assert json.loads(json.dumps(scores)) == scores


def test_weights_for_other_classes_are_refused(recwarn):
    names = tuple(f"thing {i}" for i in range(1000))
    folders = tuple(f"n{i:08d}" for i in range(1000))
    checkpoint.check_folders(checkpoint.Card(names), names, "w")
    with pytest.warns(Segmv3Warning, match="n00000000 for 'thing 0'"):
        checkpoint.check_folders(checkpoint.Card(names), folders, "w")
    with pytest.raises(CheckpointError, match="tells 1000 classes apart, the data has 4"):
        checkpoint.check_folders(checkpoint.Card(names), tuple(COLORS), "w")
    with pytest.raises(CheckpointError, match="'bat' where the data has 'bird'"):
        checkpoint.check_folders(checkpoint.Card(("apple", "bat")), ("apple", "bird"), "w")


# --- configs and command line ---


@pytest.mark.parametrize("path", sorted((ROOT / "configs/imagenet").glob("*.py")), ids=lambda p: p.stem)
def test_every_imagenet_config_loads_and_says_what_it_is(path):
    config = load_config(path, kind=Classification)
    assert json.loads(json.dumps(to_dict(config)))["schedule"]["steps"] == config.schedule.steps
    schedule, data = config.schedule, config.data
    assert schedule.eval_every * data.batch_size / 1_281_167 == pytest.approx(1, abs=0.01) or path.stem.endswith(
        "paper"
    )
    assert not config.optim.decay_bn_and_bias and data.crop_size == (224, 224) and data.resize == 256
    size = sum(p.numel() for p in create_classifier(config.model).parameters())
    assert f"{size:,} parameters" in path.read_text()
    with pytest.raises(ConfigError, match="is an experiment for `segmv3 classify train`"):
        load_config(path, kind=Config)


def test_d_li14s_recipe_is_the_published_one():
    config = load_config(ROOT / "configs/imagenet/large_dli14.py", kind=Classification)
    assert config.schedule.steps == round(150 * 1_281_167 / 1024) and config.data.batch_size == 1024
    assert (config.optim.lr, config.schedule.warmup_from, config.optim.weight_decay) == (0.4, 0.1, 4e-5)
    assert config.label_smoothing == 0.1 and config.model.dropout == 0.2


def config_file(folder: Path, experiment: Classification) -> Path:
    file = folder / "pictures.py"
    file.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\n"
        f"root = Path({str(experiment.data.root)!r})\n"
        "config = Classification(model=Classifier(backbone=MobileNetV3(size='small', width=0.35)), "
        "data=ImageFolder(root=root, batch_size=8, crop_size=(32, 32), resize=36, workers=0), optim=AdamW(lr=1e-3), "
        "schedule=Schedule(steps=4, min_lr=0, eval_every=2, log_every=2, ema=0.5))\n"
    )
    return file


@pytest.mark.slow
def test_train_evaluate_predict_and_reuse(experiment, folder, tmp_path, capsys):
    file, run = config_file(tmp_path, experiment), tmp_path / "run"
    root = experiment.data.root
    assert main(["classify", "train", str(file), "--run", str(run), "--threads", "1"]) == 0
    best, out = run / "best.safetensors", tmp_path / "out.json"
    evaluate = ["classify", "evaluate", "--weights", str(best), "--data.root", str(root), "--output", str(out)]
    view = ["--data.crop-size", "32", "32", "--data.resize", "36"]
    assert main([*evaluate, *view]) == 0
    trained = json.loads((run / "metrics.json").read_text())
    assert json.loads(out.read_text())["classes"] == trained["classes"]
    assert "top-1" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # else pytest makes it an error
        assert main([*evaluate, "--overwrite"]) == 0
    assert "was scored in training with --data.resize 36 --data.crop-size 32 32" in capsys.readouterr().err
    evaluate[2:2] = [str(file)]
    assert main([*evaluate, "--overwrite", "--limit", "4", "--split", "train"]) == 0
    assert [row["images"] for row in json.loads(out.read_text())["classes"]] == [1] * 4
    assert "out.json exists" in fails(capsys, *evaluate)

    images = [str(root / "val" / name / f"{name}_0.JPEG") for name in ("apple", "dog")]
    capsys.readouterr()
    assert main(["classify", "predict", *images, "--weights", str(best), "--top", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [printed[0], printed[3]] == images and len(printed) == 6
    assert all(line.split()[0].endswith("%") and line.split()[1] in COLORS for line in printed if line[0] == " ")

    other = tmp_path / "other"
    assert main(["classify", "train", str(file), "--run", str(other), "--threads", "1", "--seed", "7"]) == 0
    found = segmv3.compare([run, other], tmp_path / "page", dpi=50)
    table = [[text for text, _ in row] for row in found.tables["runs"].rows]
    assert table[0][1] == f"{trained['top1']:.2f}" and set(found.tables) == {"runs", "settings"}
    assert found.notes == [
        "no pictures and no intervals: classifiers and detectors have curves, settings and cost alone"
    ]

    streets = tmp_path / "streets.py"
    streets.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\n"
        f"config = Config(model=Model(backbone=MobileNetV3(size='small', width=0.35, output_stride=16)), "
        f"data=Data(dataset='folder', root=Path({str(folder)!r}), batch_size=2, crop_size=(32, 48), workers=0), "
        "optim=AdamW(lr=1e-12, weight_decay=0), schedule=Schedule(steps=2, min_lr=0, eval_every=2, log_every=1))\n"
    )
    start = ["train", str(streets), "--run", str(tmp_path / "streets"), "--model.pretrained", str(best)]
    assert main([*start, "--threads", "1"]) == 0
    assert "pretrained" in capsys.readouterr().out
    model, card = checkpoint.load(tmp_path / "streets" / "best.safetensors")
    backbone = checkpoint.load_net(best, Classifier)[0].backbone.state_dict()
    taken = dict(model.backbone.named_parameters())
    assert taken and all(torch.allclose(value, backbone[name], atol=1e-6) for name, value in taken.items())
    assert card.facts["config"]["model"]["pretrained"] == str(best)


@pytest.mark.slow
def test_a_resumed_run_needs_no_pretrained_file(experiment, tmp_path):
    weights = tmp_path / "w.safetensors"
    torch.manual_seed(7)
    checkpoint.save(create_classifier(experiment.model, 4), weights, classes=tuple(COLORS))
    begun = replace(experiment, model=replace(experiment.model, pretrained=str(weights)))
    assert crash.run(begun, tmp_path / "run", "between saves", 6) == 9
    weights.unlink()
    assert crash.run(begun, tmp_path / "run") == 0
    with pytest.raises(CheckpointError):
        train(begun, tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()


def test_mistakes_are_one_line(experiment, tmp_path, capsys):
    file = config_file(tmp_path, experiment)
    segmenter = tmp_path / "s.safetensors"
    checkpoint.save(create_model("lraspp_small_d8"), segmenter)
    assert "nothing to do for classify alone" in fails(capsys, "classify")
    assert "no classify command 'trian'; there is segmv3 classify train CONFIG |" in fails(capsys, "classify", "trian")
    assert "needs a config file first" in fails(capsys, "classify", "train")
    assert "is an experiment for `segmv3 train`" in fails(
        capsys, "classify", "train", ROOT / "configs/lraspp_large_d8.py"
    )
    assert "is an experiment for `segmv3 classify train`" in fails(capsys, "train", file)
    evaluate = ("classify", "evaluate", "--data.root", experiment.data.root, "--weights")
    assert "is a segmentation net" in fails(capsys, *evaluate, segmenter)
    assert "missing does not exist" in fails(capsys, *evaluate, tmp_path / "missing")
    thousand = tmp_path / "k.safetensors"
    checkpoint.save(create_classifier(experiment.model, 5), thousand)
    assert "tells 5 classes apart, the data has 4" in fails(capsys, *evaluate, thousand)
    assert "--limit is 0" in fails(capsys, *evaluate, thousand, "--limit", 0)
    image = experiment.data.root / "val" / "cat" / "cat_0.JPEG"
    predict = ("classify", "predict", "--weights", thousand)
    assert "needs an image" in fails(capsys, *predict)
    assert "--top is 0" in fails(capsys, *predict, image, "--top", 0)
    assert "nothing.png does not exist" in fails(capsys, *predict, tmp_path / "nothing.png")
    assert "data.resize: must be at least as large" in fails(
        capsys, "classify", "train", file, "--data.crop-size", 64, 64
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "prepare"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["classify", command, "--help"])
    assert stop.value.code == 0 and f"usage: segmv3 classify {command}" in capsys.readouterr().out
    assert main(["classify", "--help"]) == 0


def test_loose_pictures_are_sorted(tmp_path, capsys):
    from scipy.io import savemat

    loose, kit = tmp_path / "loose", tmp_path / "kit" / "data"
    loose.mkdir(), kit.mkdir(parents=True)
    for i in range(1, 5):
        picture(COLORS["apple"], i).save(loose / f"ILSVRC2012_val_{i:08d}.JPEG")
    kind = [(name, object) for name in ("ID", "WNID", "words", "gloss", "children")]
    rows = [(1, "n01440764", "tench", "fish", 0), (2, "n01443537", "goldfish", "fish", 0), (3, "n0", "all", "all", 2)]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, kind)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n2\n")
    prepare = ("classify", "prepare", loose, "--labels")
    assert main([*map(str, prepare), str(kit.parent), "-o", str(tmp_path / "in" / "val")]) == 0
    assert "linked 4 pictures into 2 class folders" in capsys.readouterr().out
    val = open_pictures(tmp_path / "in", "val")
    assert val.classes == ("n01440764", "n01443537") and val.targets.tolist() == [0, 1, 1, 1]
    assert val.path(0).name.endswith("2.JPEG")
    table = tmp_path / "val.csv"
    lines = [f"ILSVRC2012_val_{i:08d},n{i % 2} 1 2 3 4" for i in range(1, 5)]
    table.write_text("\n".join(["ImageId,PredictionString", *lines]))
    assert main([*map(str, prepare), str(table), "-o", str(tmp_path / "in" / "test")]) == 0
    assert open_pictures(tmp_path / "in", "test").targets.tolist() == [0, 0, 1, 1]

    new = ("-o", tmp_path / "new")
    capsys.readouterr()
    assert "exists; choose another" in fails(capsys, *prepare, table, "-o", tmp_path / "in" / "val")
    assert "has no data/ILSVRC2012" in fails(capsys, *prepare, tmp_path, *new)
    table.write_text("image,class\nILSVRC2012_val_00000001,../../up\n")
    assert "cannot be the name of a folder" in fails(capsys, *prepare, table, *new)
    table.write_text("image,class\nILSVRC2012_val_00000001.JPEG,fire truck\n")
    assert "3 of 4 have no class in" in fails(capsys, *prepare, table, *new)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    assert "has 2 lines, but there are 4 pictures" in fails(capsys, *prepare, kit, *new)
    assert not (tmp_path / "new").exists()

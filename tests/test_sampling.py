import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import check, paint

from segmv3.cli import main
from segmv3.config import Config, Data, Schedule
from segmv3.data import facts as checking
from segmv3.data.check import class_counts, class_pixels
from segmv3.data.datasets import open_dataset
from segmv3.data.loader import TrainSamples, train_batches
from segmv3.data.pack import pack
from segmv3.data.packed import open_training
from segmv3.data.sampling import Draws, draws_of, paste
from segmv3.errors import ConfigError, DataError
from segmv3.images import write_png
from segmv3.models.zoo import NETS
from segmv3.training.loop import train


@pytest.fixture
def data(folder: Path) -> Data:
    """Class 3 on 50 pixels of one image only, class 2 nowhere."""
    for path in (folder / "train" / "labels").iterdir():
        labels = np.zeros((48, 64), np.uint8)
        labels[24:] = 1
        if path.stem == "scene_4":
            labels[10:15, 40:50] = 3
        write_png(path, labels)
    return Data(dataset="folder", root=folder, batch_size=4, crop_size=(16, 20), workers=0, cat_max_ratio=1.0)


def same(first, second) -> bool:
    return all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one[:2], two[:2], strict=True)
    )


def batches(data: Data, **options):
    return list(train_batches(open_training(data), data, **{"seed": 3, "start": 0, "stop": 4} | options))


# --- counting ---


def test_counts_are_those_of_the_labels(data, monkeypatch):
    dataset = open_dataset(data, "train")
    check(dataset)
    monkeypatch.setattr(checking, "_read", None)  # what was checked is not read again
    counts = class_counts(dataset)
    assert counts.shape == (6, 4) and counts[4].tolist() == [24 * 64 - 50, 24 * 64, 0, 50]
    assert class_pixels(dataset).tolist() == counts.sum(0).tolist()


def test_nothing_asked_for_is_nothing_done(data):
    assert draws_of(open_training(data), data) is None
    assert TrainSamples(open_training(data), data, 0).draws is None


# --- class-uniform ---


def test_every_class_is_shown_as_often(data):
    data = replace(data, class_uniform=1.0, flip=0.0)
    samples = TrainSamples(open_training(data), data, seed=0)
    shown = sum(bool((samples[(epoch, 0)][1] == 3).any()) for epoch in range(150))
    assert shown > 40  # a third of the samples, and those of scene_4 that show it anyway
    plain = TrainSamples(open_training(data), replace(data, class_uniform=0.0), seed=0)
    assert not any((plain[(epoch, 0)][1] == 3).any() for epoch in range(20))
    assert sum(bool((plain[(epoch, 4)][1] == 3).any()) for epoch in range(60)) < 50


def test_a_class_that_a_half_size_cache_lost_is_no_error(data):
    dataset = open_training(data)
    draws = Draws(dataset, replace(data, class_uniform=1.0))
    draws.occurring, draws.images[2] = np.array([2]), np.array([1])
    assert draws.read(0, np.random.default_rng(0))[2] is None


def test_no_labelled_pixel_is_refused(data):
    for path in (data.root / "train" / "labels").iterdir():
        write_png(path, np.full((48, 64), 255, np.uint8))
    with pytest.raises(ConfigError, match=r"data\.class-uniform: no pixel of the training set is labelled"):
        batches(replace(data, class_uniform=0.5))


# --- copy-paste ---


def test_pieces_are_pasted_with_their_labels():
    image, labels = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    donor, donor_labels = np.full((60, 80, 3), 200, np.uint8), np.ones((60, 80), np.uint8)
    donor_labels[5:15, 10:20] = 7
    donor_labels[30:40, 50:60], donor_labels[32:36, 60:64] = 7, 8  # two rare classes that touch
    donor_labels[50:53, 5:9] = 7  # 12 pixels
    donor_labels[45:60, 20:80] = 9  # common
    seen = set()
    for seed in range(40):
        mirrored = seed % 2 == 1
        pixels, ids = paste(
            image, labels, donor, donor_labels, np.array([7, 8]), np.random.default_rng(seed), mirrored=mirrored
        )
        if mirrored:
            pixels, ids = pixels[:, ::-1], ids[:, ::-1]
        assert ((pixels == 200).all(2) == (ids > 0)).all()
        first, second = (ids[5:15, 10:20] == 7).all(), (ids[30:40, 50:60] == 7).all()
        assert (ids == 8).sum() == 16 * second and (ids > 0).sum() == 100 * first + 116 * second
        seen.add((bool(first), bool(second)))
    assert len(seen) == 4 and not image.any() and not labels.any()


def test_a_donor_of_another_size_is_cut_off():
    image, labels = np.zeros((30, 90, 3), np.uint8), np.zeros((30, 90), np.uint8)
    donor, donor_labels = np.full((60, 40, 3), 200, np.uint8), np.zeros((60, 40), np.uint8)
    donor_labels[20:45, 5:15] = 7
    sums = {
        int((paste(image, labels, donor, donor_labels, np.array([7]), np.random.default_rng(s))[1] == 7).sum())
        for s in range(20)
    }
    assert sums == {0, 100}


def test_samples_get_pieces_of_other_images(data):
    data = replace(data, copy_paste=1.0, crop_size=(48, 64), scale_range=(1.0, 1.0), flip=0.0)
    samples = TrainSamples(open_training(data), data, seed=0)
    pasted = [int((samples[(epoch, 0)][1] == 3).sum()) for epoch in range(40)]
    assert set(pasted) == {0, 50} and 8 < sum(count > 0 for count in pasted) < 32


def test_packed_pixels_are_not_written_to(data, tmp_path):
    pack(open_dataset(data, "train"), tmp_path / "cache")
    settings = replace(data, copy_paste=1.0, class_uniform=0.5)
    assert same(batches(replace(settings, cache=tmp_path / "cache")), batches(settings))


def test_no_rare_class_is_refused_before_the_run(config, tmp_path):
    data = replace(config.data, copy_paste=0.5)
    for path in (data.root / "train" / "labels").iterdir():
        write_png(path, np.repeat(np.arange(4, dtype=np.uint8), 12)[:, None].repeat(64, 1))
    with pytest.raises(ConfigError, match=r"data\.copy-paste: no class is rarer than 2% \(the rarest: 25\.0%\)"):
        train(replace(config, data=data), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


# --- still a function of the step ---


def test_batches_depend_on_seed_and_step_alone(data, extra):
    data = replace(extra(data), copy_paste=0.5, class_uniform=0.5, photometric="randaugment")
    whole = batches(data)
    assert same(batches(replace(data, workers=2), start_method="fork"), whole)
    assert same(batches(data, start=2), whole[2:]) and not same(batches(data, seed=4), whole)
    ranks = [batches(data, rank=rank, world_size=2) for rank in (0, 1)]
    for step, (images, labels, _) in enumerate(whole):
        for place in range(4):
            part = ranks[place % 2][step]
            assert images[place].equal(part[0][place // 2]) and labels[place].equal(part[1][place // 2])
    pickle.dumps(TrainSamples(open_training(data), data, 0))


# --- extra images ---


@pytest.fixture
def extra(tmp_path: Path):
    """Three more images, two of them with the labels `segmv3 predict` would write."""

    def make(data: Data, share: float = 0.5) -> Data:
        images, labels = tmp_path / "more", tmp_path / "predicted"
        for folder in (images / "a", labels / "a"):
            folder.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            image, ids = paint(70 + i, (40, 50), 4)
            write_png(images / "a" / f"{i}.png", image)
            if i < 2:
                write_png(labels / "a" / f"{i}_labels.png", np.full_like(ids, 2))
                write_png(labels / "a" / f"{i}_overlay.png", image)
        return replace(data, extra_images=images, extra_labels=labels, extra_share=share)

    return make


def test_extra_images_take_their_share(data, extra):
    data = extra(data, share=0.75)
    dataset = open_training(data)
    assert [pair.name for pair in dataset.extra.pairs] == ["0", "1"] and dataset.extra.skipped == 1
    samples = TrainSamples(dataset, data, seed=0)
    of_extra = sum(bool((samples[(epoch, 2)][1] == 2).any()) for epoch in range(200))
    assert 125 < of_extra < 175


def test_images_of_one_name_are_told_apart_by_their_folders(data, extra):
    data = extra(data)
    for folder in (data.extra_images, data.extra_labels):
        shutil.copytree(folder / "a", folder / "b")
    dataset = open_training(data)
    assert [pair.name for pair in dataset.extra.pairs] == ["a/0", "a/1", "b/0", "b/1"]
    for pair in dataset.extra.pairs:
        assert pair.label == data.extra_labels / f"{pair.name}_labels.png"


def test_stored_ids_go_through_the_table_of_the_data_set(data, extra):
    data = extra(data)
    table = [{"id": 10 * i, "name": name} for i, name in enumerate(("road", "house", "tree", "sky"))]
    (data.root / "classes.json").write_text(json.dumps({"classes": table}))
    write_png(data.extra_labels / "2.png", np.full((40, 50), 30, np.uint8))
    found = open_training(data).extra
    assert [int(found.read(i)[1][0, 0]) for i in range(3)] == [2, 2, 3] and found.skipped == 0


@pytest.mark.parametrize("inside", ["images", "labels"])
def test_one_folder_may_lie_in_the_other(data, tmp_path, inside):
    images, labels = (tmp_path / "x", tmp_path / "x/y") if inside == "labels" else (tmp_path / "x/y", tmp_path / "x")
    (tmp_path / "x/y").mkdir(parents=True)
    image, ids = paint(1, (40, 50), 4)
    write_png(images / "1.png", image)
    write_png(labels / "1_labels.png", ids)
    dataset = open_training(replace(data, extra_images=images, extra_labels=labels))
    assert [(pair.image, pair.label) for pair in dataset.extra.pairs] == [(images / "1.png", labels / "1_labels.png")]


@pytest.mark.parametrize("suffix", ["gtCoarse_labelIds", "gtCoarse_labelTrainIds", "gtFine_labelIds", "predicted"])
def test_cityscapes_names_are_understood(cityscapes, tmp_path, suffix):
    images, labels = tmp_path / "leftImg8bit/train_extra/city", tmp_path / "labels/city"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    image, _ = paint(1, (40, 50), 4)
    write_png(images / "city_0_0_leftImg8bit.png", image)
    name = "city_0_0_leftImg8bit_labels" if suffix == "predicted" else f"city_0_0_{suffix}"
    write_png(labels / f"{name}.png", np.full((40, 50), 7, np.uint8))
    data = Data(dataset="cityscapes", root=cityscapes, extra_images=images.parent, extra_labels=labels.parent)
    found = open_training(data).extra.read(0)[1]
    assert set(found.ravel().tolist()) == {0 if suffix.endswith("labelIds") else 7}


def test_a_resumed_run_notices_other_labels(data, extra, tmp_path):
    before = open_training(data).fingerprint()
    data = extra(data)
    pack(open_dataset(data, "train"), tmp_path / "cache")
    first = open_training(data).fingerprint()
    assert first != before == open_dataset(data, "train").fingerprint()
    assert open_training(replace(data, cache=tmp_path / "cache")).fingerprint() == first
    write_png(data.extra_labels / "a/1_labels.png", paint(3, (40, 50), 4)[1])
    assert open_training(data).fingerprint() != first


def config_file(tmp_path: Path, data: Data) -> list[str]:
    path = tmp_path / "config.py"
    path.write_text(
        "from pathlib import *\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        f"config = Config(model=NETS['lraspp_small_d8'], data={data!r}, optim=AdamW(), schedule=Schedule(steps=2))\n"
    )
    return ["train", str(path), "--run", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]


@pytest.mark.filterwarnings("default::segmv3.errors.Segmv3Warning")
def test_training_takes_all_of_it(data, extra, tmp_path, capsys):
    data = replace(extra(data), batch_size=2, crop_size=(32, 32), copy_paste=0.5, class_uniform=0.5)
    assert main(config_file(tmp_path, data)) == 0
    said = capsys.readouterr()
    assert "data: 1 of the 3 extra images have no label and are left out" in said.err
    assert main([*config_file(tmp_path, data), "--data.extra-share", "0.25"]) == 2
    assert "data.extra_share 0.5 -> 0.25" in capsys.readouterr().err


def spoil(kind: str, data: Data) -> Data:
    label = data.extra_labels / "a/0_labels.png"
    if kind == "ids":
        write_png(label, np.full((40, 50), 9, np.uint8))
    elif kind == "size":
        write_png(label, np.zeros((40, 51), np.uint8))
    elif kind == "damaged":
        label.write_bytes(label.read_bytes()[:60])
    elif kind == "none":
        shutil.rmtree(data.extra_labels / "a")
    elif kind == "missing":
        return replace(data, extra_images=data.extra_images / "nowhere")
    elif kind == "same":
        return replace(data, extra_labels=data.extra_images)
    return data


@pytest.mark.filterwarnings("default::segmv3.errors.Segmv3Warning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ids", "0_labels.png has ids {9}; expected 0-3 or 255 (train ids)"),
        ("size", "0.png is 50x40 but its label"),
        ("damaged", "0_labels.png is damaged"),
        ("none", "none of the 3 images in "),
        ("missing", "nowhere is no folder"),
        ("same", "cannot hold images and labels alike"),
    ],
)
def test_bad_extra_sets_are_one_line(data, extra, tmp_path, capsys, kind, message):
    assert main(config_file(tmp_path, spoil(kind, extra(data)))) == 2
    error = capsys.readouterr().err
    [line] = [line for line in error.splitlines() if "left out" not in line]
    assert message in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_uniform": 1.5}, "data.class-uniform"),
        ({"copy_paste": -0.1}, "data.copy-paste"),
        ({"extra_share": 0.0}, "data.extra-share"),
        ({"extra_images": Path("x")}, "data.extra-labels: is missing"),
        ({"extra_labels": Path("x")}, "data.extra-images: is missing"),
    ],
)
def test_settings_out_of_range_are_refused(data, settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(model=NETS["lraspp_small_d8"], data=replace(data, **settings), schedule=Schedule(steps=1))


def test_labels_that_predict_wrote_are_taken_as_they_are(config, data, extra, tmp_path):
    from segmv3.checkpoint import save
    from segmv3.models.zoo import create_model

    dataset = open_dataset(data, "train")
    weights = tmp_path / "net.safetensors"
    save(create_model(config.model, 4), weights, classes=dataset.classes, net="x")
    images = extra(data).extra_images
    arguments = [str(images), "--weights", str(weights), "--save", "labels,overlay", "--backend", "torch"]
    assert main(["predict", *arguments, "--output", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]) == 0
    found = open_training(replace(data, extra_images=images, extra_labels=tmp_path / "out"))
    assert len(found.extra) == 3 and found.extra.skipped == 0
    assert all(found.extra.read(i)[1].max() < 4 for i in range(3))
    with pytest.raises(DataError, match="illegal|has ids"):
        label = found.extra.pairs[0].label
        write_png(label, np.full((40, 50), 4, np.uint8))
        found.extra.read(0)

"""Fine-tuning: what is planned from data, start and time, and the command that follows it."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import paint

import segmv3
from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.config import Config, Data, Divided, Freeze, Loss, load_config, standalone
from segmv3.data.datasets import open_dataset
from segmv3.errors import CheckpointError, ConfigError, DataError
from segmv3.finetuning import Wanted, plan, run, starts
from segmv3.images import write_png
from segmv3.labels import named_classes
from segmv3.models.zoo import NETS, create_model
from segmv3.training.rehearsal import Pace, rehearse
from segmv3.weights import names
from segmv3.weights.formats import formats
from segmv3.weights.importing import their_names
from segmv3.weights.names import published

PACE = Pace(step=0.1, image=0.01, device="2 CPU threads", steps=5)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("SEGMV3_OFFLINE", "1")


@pytest.fixture
def paced(monkeypatch):
    """Steps take no time to measure: the plan is a function of the data alone."""
    monkeypatch.setattr(plan, "rehearse", lambda config, run, **where: PACE)
    monkeypatch.setattr(plan, "_since", lambda began: 0.0)


def weights(path, *names):
    net = create_model(NETS["lraspp_small_d8"], len(names))
    checkpoint.save(net, path, classes=named_classes(*names))
    return str(path)


def one_clip(root, drives=1, count=30):
    """A `folder` data set without a val."""
    shutil.rmtree(root / "val")
    for number in range(count):
        image, labels = paint(number, (48, 64), 4)
        name = f"drive{number % drives}_{number:04d}.png"
        write_png(root / "train" / "images" / name, image)
        write_png(root / "train" / "labels" / name, labels)
    for path in root.glob("train/*/scene_*"):
        path.unlink()


# --- the data ---


def test_without_a_val_the_end_of_a_clip_is_held_out_behind_a_gap(folder):
    one_clip(folder)
    divided = Divided(layout="folder", hold_out=0.2)
    parts = {split: open_dataset(Data(dataset=divided, root=folder), split) for split in ("train", "val")}
    train, val = ([pair.name for pair in parts[split].pairs] for split in ("train", "val"))
    assert val == [f"drive0_{number:04d}" for number in range(24, 30)]
    assert train == [f"drive0_{number:04d}" for number in range(len(train))] and len(train) < 24
    assert parts["val"].split == "val" and parts["val"].classes.names == ("road", "house", "tree", "sky")
    assert "the last frames of each" in divided.told(folder)[0]


def test_without_a_val_whole_drives_are_held_out(folder):
    one_clip(folder, drives=5)
    names = {
        split: {pair.name.partition("_")[0] for pair in open_dataset(data, split).pairs}
        for data in [Data(dataset=Divided(layout="folder", hold_out=0.2), root=folder)]
        for split in ("train", "val")
    }
    assert len(names["val"]) == 1 and len(names["train"]) == 4 and not names["val"] & names["train"]


def test_a_val_is_thinned_evenly(cityscapes, folder):
    data = Data(dataset=Divided(layout="folder", most=2), root=folder)
    assert [pair.name for pair in open_dataset(data, "val").pairs] == ["scene_0", "scene_1"]
    assert len(open_dataset(data, "train")) == 6
    labels = open_dataset(Data(dataset=Divided(layout="cityscapes", most=1), root=cityscapes), "val")
    assert len(labels) == 1 and labels.title == "Cityscapes" and labels.read(0)[1].max() == 18


# --- the plan ---


def test_weights_of_classes_are_the_root_of_their_rarity_and_bounded():
    import numpy as np

    assert plan._weights(np.array([400, 100, 25, 0])) == (0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("size", "device", "crop"),
    [((360, 480), "cpu", (240, 320)), ((1024, 2048), "cpu", (384, 768)), ((1024, 2048), "cuda", (512, 1024))],
)
def test_crops_are_two_thirds_of_the_image_and_bounded(size, device, crop):
    assert plan._crop(size, device) == crop


def test_the_steps_fit_the_time_with_everything_else_in_it(folder, tmp_path, paced):
    made = plan.make_plan(Wanted(data=folder, minutes=10, device="cpu"), tmp_path / "run")
    schedule = made.config.schedule
    assert schedule.steps == int((600 - 15 - 10 * 3 * 0.01) / 0.1)
    assert schedule.eval_every == -(-schedule.steps // 10) and schedule.patience == 4
    assert made.config.data.dataset == "folder"  # all of val is cheap
    assert any("5,847 steps fit" in line for line in made.lines)


def test_a_slow_start_takes_its_time_from_the_steps(folder, tmp_path, paced, monkeypatch):
    monkeypatch.setattr(plan, "_since", lambda began: 60.0)
    made = plan.make_plan(Wanted(data=folder, minutes=10, device="cpu"), tmp_path / "run")
    assert made.config.schedule.steps == int((600 - 60 - 60 - 10 * 3 * 0.01) / 0.1)
    assert any("120 s are for this plan, the start and the report" in line for line in made.lines)


def test_scoring_takes_a_tenth_of_the_time_at_most(folder, tmp_path, monkeypatch):
    for number in range(3, 40):
        image, labels = paint(number, (48, 64), 4)
        for kind, pixels in (("images", image), ("labels", labels)):
            write_png(folder / "val" / kind / f"scene_{number}.png", pixels)
    monkeypatch.setattr(plan, "rehearse", lambda config, run, **where: replace(PACE, image=1.0))
    monkeypatch.setattr(plan, "_since", lambda began: 0.0)
    made = plan.make_plan(Wanted(data=folder, minutes=10, device="cpu"), tmp_path / "run")
    assert made.config.data.dataset == Divided(layout="folder", most=14)  # 58 s for 4 evaluations
    assert any("on 14 of the 40 val frames" in line for line in made.lines)


def test_the_start_decides_about_the_net_its_rows_and_the_freezing(folder, tmp_path, paced):
    start = weights(tmp_path / "w.safetensors", "road", "car", "sky")
    made = plan.make_plan(Wanted(data=folder, start=start, device="cpu"), tmp_path / "run")
    assert made.config.model == replace(NETS["lraspp_small_d8"], pretrained=start)
    assert made.config.freeze.backbone == 32 and made.config.freeze.thaw_every
    text = "\n".join(made.lines)
    assert "classes of the start: road, sky keep what tells them apart; new: house, tree" in text
    assert "the head learns alone" in text


def test_without_a_network_the_net_is_new_and_the_reason_is_said(folder, tmp_path, paced):
    made = plan.make_plan(Wanted(data=folder, device="cpu"), tmp_path / "run")
    assert made.config.model == starts.fresh_net((48, 64)) and made.config.freeze == Freeze()
    assert made.config.optim.lr == 8e-3
    assert any(
        line == "start: new weights, which take longer; paddleseg/mobileseg_large is not in the cache"
        for line in made.lines
    )


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server on this machine that has the published net in small; gives what was asked of it."""
    kind = formats()[0]
    variant = kind.variants()[1]
    tensors = dict(
        zip(their_names(kind, variant.net), segmv3.create_model(variant.net).state_dict().values(), strict=True)
    )
    entry = published()["mmseg/lraspp_m-v3s-d8"]
    torch.save({"state_dict": tensors}, tmp_path / entry.file)
    digest = hashlib.sha256((tmp_path / entry.file).read_bytes()).hexdigest()
    asked = []

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, form, *values):
            asked.append(self.path)

    for module in (names, starts):
        monkeypatch.setattr(module, "published", lambda: {entry.name: replace(entry, sha256=digest[:8])})
    monkeypatch.setattr(starts, "USUAL", {"cpu": entry.name})
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SEGMV3_MIRROR", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("SEGMV3_OFFLINE")
        yield asked
        server.shutdown()


def test_the_published_net_is_fetched_with_its_licence_and_then_kept(folder, tmp_path, paced, served, monkeypatch):
    text = "\n".join(plan.make_plan(Wanted(data=folder, device="cpu"), tmp_path / "run").lines)
    assert len(served) == 1
    assert "start: mmseg/lraspp_m-v3s-d8, a net for streets (mIoU 64.11" in text and "non-commercial use only" in text
    assert "classes of the start: road, sky keep what tells them apart; new: house, tree" in text
    monkeypatch.setenv("SEGMV3_MIRROR", "http://127.0.0.1:9")  # nobody answers there
    made = plan.make_plan(Wanted(data=folder, device="cpu"), tmp_path / "run")
    assert made.config.model.pretrained == "mmseg/lraspp_m-v3s-d8"  # from the cache
    monkeypatch.setattr(starts, "USUAL", {"cpu": "paddleseg/mobileseg_large"})
    entry = published()["paddleseg/mobileseg_large"]
    for module in (names, starts):
        known = {**module.published(), entry.name: entry}
        monkeypatch.setattr(module, "published", lambda known=known: known)
    start = starts.start_for(None, "cpu", (48, 64))  # the usual one cannot be had, another lies in the cache
    assert start.net.pretrained == "mmseg/lraspp_m-v3s-d8" and "paddleseg/mobileseg_large cannot be" in start.told


def test_a_backbone_gets_a_new_head(folder, tmp_path):
    from segmv3.config import Classifier, MobileNetV3
    from segmv3.models.zoo import create_classifier

    checkpoint.save(create_classifier(Classifier(backbone=MobileNetV3(size="small")), 3), tmp_path / "b.safetensors")
    start = starts.start_for(str(tmp_path / "b.safetensors"), "cpu", (48, 64))
    assert start.net.backbone == MobileNetV3(size="small", last=False) and not start.names
    assert "a backbone under a new head" in start.told


# --- the measurement ---


def test_a_rehearsal_measures_and_writes_nothing(config, tmp_path):
    pace = rehearse(config, tmp_path / "run", device="cpu", threads=1)
    assert pace.step > 0 and pace.image > 0 and 3 <= pace.steps <= 20 and pace.device == "1 CPU thread"
    assert not (tmp_path / "run").exists()


# --- the command ---


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Plans of four steps, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "rehearse", lambda config, run, **where: replace(PACE, step=2.0))
    monkeypatch.setattr(plan, "_LEAST_STEPS", 2)
    monkeypatch.setattr(plan, "_since", lambda began: 0.0)
    return ["--minutes", "0.4", "--device", "cpu", "--threads", "1"]


def test_the_command_trains_and_goes_on_by_the_same_words(folder, short, tmp_path, capsys):
    assert main(["finetune", str(folder), *short]) == 0
    said = capsys.readouterr().out
    assert "data: data, 6 frames of 64x48 to train on, 3 to score on" in said and "4 steps fit" in said
    assert (tmp_path / "runs/finetune-data/best.safetensors").is_file()
    assert (tmp_path / "runs/finetune-data/report.html").is_file()
    config = load_config(tmp_path / "runs/finetune-data.py")
    assert config.schedule.steps == 4 and isinstance(config.loss, Loss)
    assert main(["finetune", str(folder), *short]) == 0
    said = capsys.readouterr().out
    assert "going on with the plan in runs/finetune-data.py" in said and "is finished" in said
    assert main(["finetune", str(folder), "--minutes", "9", "--device", "cpu"]) == 2
    assert "runs/finetune-data.py is another plan" in capsys.readouterr().err


def test_the_config_can_be_shown_and_nothing_is_written(folder, short, tmp_path, capsys):
    assert main(["finetune", str(folder), *short, "--show-config"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f'"""segmv3 finetune {folder} --minutes 0.4, to be edited."""\n')
    assert "start: new weights" in shown.err
    (tmp_path / "mine.py").write_text(shown.out)
    assert isinstance(load_config(tmp_path / "mine.py"), Config)
    assert not (tmp_path / "runs").exists()


def test_a_divided_data_set_survives_the_config_file(config, tmp_path):
    divided = replace(config, data=replace(config.data, dataset=Divided(layout="folder", hold_out=0.2)))
    (tmp_path / "c.py").write_text(standalone(divided, 'odd """name\\'))
    assert load_config(tmp_path / "c.py") == divided


def test_the_function_does_what_the_command_does(folder, short, tmp_path):
    trained = segmv3.finetune(folder, "r/one", minutes=0.4, device="cpu", threads=1, quiet=True)
    assert trained.weights == tmp_path / "r/one/best.safetensors" or trained.weights.samefile("r/one/best.safetensors")
    assert json.loads((tmp_path / "r/one/metrics.json").read_text())["miou"] == trained.score


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"minutes": 0.0}, ConfigError, "--minutes: is 0; it must be above 0"),
        ({"minutes": float("nan")}, ConfigError, "--minutes: is nan; it must be above 0"),
        ({"minutes": 0.26}, ConfigError, "--minutes 0.26 leaves time for .* steps of 0.10 s; give at least"),
        ({"start": "nothing.safetensors"}, CheckpointError, "nothing.safetensors"),
        ({"start": "fastseg/smal-f64"}, CheckpointError, "did you mean fastseg/small-f64"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    folder, tmp_path, monkeypatch, paced, change, error, text
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        run.finetune(folder, device="cpu", **change)
    assert not (tmp_path / "runs").exists()


def test_data_without_a_label_are_refused(folder, tmp_path, paced):
    for path in folder.glob("train/labels/*.png"):
        write_png(path, paint(0, (48, 64), 4)[1] * 0 + 255)
    with pytest.raises(DataError, match="no pixel of its 6 training frames is labelled"):
        plan.make_plan(Wanted(data=folder, device="cpu"), tmp_path / "run")


def test_another_run_in_the_folder_is_left_alone(folder, tmp_path, paced):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run that has no plan of finetune beside it"):
        run.finetune(folder, tmp_path / "run", device="cpu")

"""`segmv3 benchmark loader`: what it prints and leaves behind."""

import json
from functools import partial

import pytest

from segmv3.benchmark import timing
from segmv3.cli import main

QUICK = ["--force", "--repeat", "1", "--threads", "1", "--crop", "24", "24", "--workers", "0"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(timing, "refuse_busy", partial(timing.refuse_busy, seconds=0.02))


def test_pipelines_stand_beside_mmsegmentations_steps(cityscapes, tmp_path, capsys):
    output = tmp_path / "loader.json"
    arguments = [*QUICK, "--data.root", str(cityscapes), "--images", "3", "--output", str(output)]
    assert main(["benchmark", "loader", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "3 images of 48x64" in shown
    for name in ("mmsegmentation's steps", "segmv3, files", "segmv3, cache", "OpenCV"):
        assert name in shown
    receipt = json.loads(output.read_text())
    assert receipt["dataset"] == [{"title": "Cityscapes", "images": 3, "size": [48, 64]}]
    timed = [each for each in receipt["pipelines"] if "reason" not in each]
    assert len(timed) >= 3 and all(each["minimum"] <= each["median"] for each in timed)
    assert (
        receipt["decoders"] == [{"files": "PNG", "library": "libspng"}]
        and "decodes plain PNG files by libspng" in shown
    )
    assert receipt["settings"]["data"] == {"root": str(cityscapes)} and receipt["batches"] == []


def test_batches_of_workers_are_counted(folder, capsys):
    arguments = [*QUICK[:-1], "1", "--seconds", "0.1", "--data.root", str(folder)]
    assert main(["benchmark", "loader", *arguments]) == 0
    assert "--workers 1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "-1"], "--workers is -1"),
        (["--images", "0"], "--images is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--crop", "0", "24"], "--crop is 0 24"),
        (["--device", "cuda"], "timed on the CPU only"),
        (["--force", "--data.root", "nowhere"], "nowhere"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, capsys):
    assert main(["benchmark", "loader", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

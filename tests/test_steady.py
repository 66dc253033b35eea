"""--steady: less flicker where nothing moves, no delay where something does."""

import numpy as np
import pytest
import torch

import segmv3
from segmv3.cli import main
from segmv3.errors import ModelError
from segmv3.images import write_png
from segmv3.prediction.steady import Steady
from segmv3.weights import names

LEFT, RIGHT = (np.tile(np.arange(64) < 32, (48, 1)) == side for side in (True, False))


class Net:
    """A stand-in for a predictor: class 1 where the picture is bright, with noise on its logits."""

    threads = 1

    def __init__(self, noise):
        self._rng, self._noise = np.random.default_rng(0), noise

    def low_logits(self, image):
        bright = image.float().mean(1, keepdim=True)[:, :, ::8, ::8] / 255 - 0.5
        logits = torch.cat([-bright, bright], 1)
        return logits + torch.from_numpy(self._rng.normal(0, self._noise, logits.shape)).float()


def picture(bright):
    return np.repeat(np.where(bright, 180, 60)[..., None], 3, 2).astype(np.uint8)


def test_labels_flicker_less_where_nothing_moves():
    steady = Steady(Net(noise=0.2))
    for _ in range(60):
        steady(picture(LEFT))
    without, now = steady.flicker
    assert 0.02 < without < 0.6
    assert now < without / 2


def test_what_moves_is_labelled_at_once():
    steady = Steady(Net(noise=0))
    for bright in (LEFT, LEFT, RIGHT, LEFT):
        wrong = (steady(picture(bright)) > 0) != bright
        assert not np.delete(wrong, range(24, 40), axis=1).any()  # but for the blur of the net's own resolution
    assert steady.flicker == (0, 0)


def test_frames_of_another_size_begin_anew():
    steady = Steady(Net(noise=0))
    steady(picture(LEFT))
    assert steady(picture(np.ones((24, 32), bool))).all()


def test_a_first_frame_is_labelled_as_without(tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(segmv3.create_model("lraspp_small_d8", 5), path)
    predict = segmv3.load(path, backend="torch", threads=1)
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert np.array_equal(Steady(predict)(frame), predict(frame))


def test_an_export_of_labels_alone_is_refused():
    class Labels(Net):
        def low_logits(self, image):
            raise ModelError("this export gives labels alone")

    with pytest.raises(ModelError, match="labels alone"):
        Steady(Labels(0))(picture(LEFT))


# ---- which net ----


def test_without_weights_the_best_published_net_for_streets_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEGMV3_OFFLINE", "1")
    write_png(tmp_path / "street.png", picture(LEFT))
    assert main(["predict", "street.png"]) == 2
    said = capsys.readouterr()
    assert f"net: {names.DEFAULT} (mIoU 69.54" in said.out and "non-commercial" in said.out
    assert f"{names.DEFAULT} is not in the cache" in said.err
    scores = {name: entry for name, entry in names.published().items() if entry.trained_on == "Cityscapes"}
    assert names.DEFAULT in scores


@pytest.mark.parametrize(("dataset", "told"), [("mini-city", True), ("camvid", False)])
def test_a_net_of_drawn_streets_says_so_about_real_ones(tmp_path, monkeypatch, capsys, dataset, told):
    monkeypatch.chdir(tmp_path)
    segmv3.save(segmv3.create_model("lraspp_small_d8", 19), tmp_path / "w.safetensors", score={"dataset": dataset})
    write_png(tmp_path / "street.png", picture(LEFT))
    command = ["predict", "street.png", "--weights", "w.safetensors", "--backend", "torch", "--threads", "1"]
    assert main(command) == 0
    assert ("has only seen drawn streets" in capsys.readouterr().out) == told
    (tmp_path / "mini-city.json").touch()
    assert main([*command, "--overwrite"]) == 0
    assert "drawn streets" not in capsys.readouterr().out

import json
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segmv3 import checkpoint
from segmv3.cli import main
from segmv3.errors import ConfigError
from segmv3.inference import MULTI_SCALES, default_stride, multi_scale_flip, scaled_size, sliding_window
from segmv3.labels import read_classes
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import NETS, create_model


def pixelwise(image: torch.Tensor) -> torch.Tensor:
    """A "net" that looks at one pixel at a time: resizing is all that multi-scale can change."""
    return torch.cat([image[:, :1], image[:, 1:2], 255 - image[:, 2:]], 1).float() / 40


def coarse(image: torch.Tensor) -> torch.Tensor:
    """A "net" whose logits are smaller than its image by a factor that seldom divides it."""
    return F.avg_pool2d(pixelwise(image), 3, ceil_mode=True)


def bilinear(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def picture(height: int, width: int, *, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    pictures = [cv2.resize(np.ascontiguousarray(i.permute(1, 2, 0)), size[::-1]) for i in image]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


# ---- several scales, mirrored ----


def test_one_scale_without_flip_is_the_softmax():
    image = torch.rand(1, 3, 9, 12) * 255
    found = multi_scale_flip(pixelwise, image, scales=(1.0,), flip=False)
    assert torch.allclose(found, pixelwise(image).softmax(1))


@pytest.mark.parametrize("logits_of", [pixelwise, coarse])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (21, 30), (37, 53)])
def test_the_average_is_the_one_written_down(size, logits_of, monkeypatch):
    monkeypatch.setattr("segmv3.inference._BAND_BYTES", 2000)  # a few rows at a time
    image = picture(*size, count=2)
    expected = torch.zeros(2, 3, *size)
    for scale in MULTI_SCALES:
        copy = resized(image, scaled_size(size, scale))
        for x in (bilinear(logits_of(copy), copy.shape[2:]), bilinear(logits_of(copy.flip(3)), copy.shape[2:]).flip(3)):
            expected += bilinear(x, size).softmax(1)
    found = multi_scale_flip(logits_of, image)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected / 12, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(2, *size), atol=1e-5)


def test_the_net_sees_whole_grey_levels_where_the_image_has_them():
    seen = []

    def look(image):
        seen.append(image)
        return pixelwise(image)

    image = picture(20, 30)
    multi_scale_flip(look, image)
    assert {copy.dtype for copy in seen} == {torch.uint8} and len(seen) == 12
    multi_scale_flip(look, image.float(), scales=(0.75,), flip=False)
    assert seen[-1].dtype == torch.float32
    assert (seen[-1] - resized(image, (15, 23)).float()).abs().max() < 1  # rounding alone


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((1024, 2048), 0.75, (768, 1536)),
        ((1024, 2048), 1.75, (1792, 3584)),
        ((720, 960), 1.25, (900, 1200)),
        ((333, 501), 0.5, (167, 251)),
        ((1, 1), 0.5, (1, 1)),
        ((1, 1), 0.1, (1, 1)),
        ((3, 2), 0.75, (2, 1)),
        ((5, 9), 0.5, (3, 5)),
        ((3, 7), 1.5, (5, 11)),
        ((5, 3), 1.5, (8, 5)),
        ((1, 7), 1.25, (1, 7)),  # 1 x 9 is wanted, and its smaller ratio of sides is 1
        ((1, 5), 1.5, (2, 8)),
    ],
)
def test_sizes_are_rounded_as_in_mmsegmentation(size, scale, expected):
    """Expected values from mmcv-lite 2.1's Resize(scale_factor=scale, keep_ratio=True)."""
    assert scaled_size(size, scale) == expected


def test_mirroring_makes_the_result_symmetric():
    def lopsided(image):
        return pixelwise(image) + torch.linspace(0, 3, image.shape[3])

    image = torch.rand(1, 3, 8, 10) * 255
    found = multi_scale_flip(lopsided, image)
    assert torch.allclose(found.flip(3), multi_scale_flip(lopsided, image.flip(3)), atol=1e-5)


def test_no_scales_is_an_error():
    with pytest.raises(ValueError, match="no scales"):
        multi_scale_flip(pixelwise, torch.rand(1, 3, 4, 4), scales=())


def test_a_real_net_runs_on_odd_sizes():
    torch.manual_seed(0)
    model = Segmenter(NETS["lraspp_small_d8"], 4).eval()
    image = picture(45, 67)
    with torch.inference_mode():
        found = multi_scale_flip(model.low_logits, image, scales=(1.25,), flip=False)
        copy = resized(image, scaled_size((45, 67), 1.25))
        assert torch.allclose(found, bilinear(model(copy), (45, 67)).softmax(1), atol=1e-5)


# ---- sliding window ----


def averaged(logits_of, image, window, stride):
    """Every window into a full-size sum, and a full-size count: the definition."""
    height, width = image.shape[2:]
    total, count = torch.zeros(1, 3, height, width), torch.zeros(height, width)
    for top in range(0, max(0, height - window[0]) + stride[0], stride[0]):
        for left in range(0, max(0, width - window[1]) + stride[1], stride[1]):
            bottom, right = min(top + window[0], height), min(left + window[1], width)
            y, x = slice(max(0, bottom - window[0]), bottom), slice(max(0, right - window[1]), right)
            crop = image[:, :, y, x]
            total[:, :, y, x] += bilinear(logits_of(crop), crop.shape[2:])
            count[y, x] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 5), (16, 24), (23, 50), (33, 24), (48, 49)])
@pytest.mark.parametrize("stride", [(16, 24), (10, 16), (1, 23), (7, 5)])
def test_overlapping_logits_are_averaged(size, stride, monkeypatch):
    monkeypatch.setattr("segmv3.inference._BAND_BYTES", 2000)
    image = picture(*size)
    strips = list(sliding_window(coarse, image, window=(16, 24), stride=stride))
    assert all(0 < strip.shape[2] <= 16 for strip in strips)
    assert torch.allclose(torch.cat(strips, 2), averaged(coarse, image, (16, 24), stride), atol=1e-5)


def test_an_image_smaller_than_the_window_is_one_pass():
    image = picture(9, 13)
    [strip] = sliding_window(coarse, image, window=(10, 13), stride=(5, 5))
    assert torch.allclose(strip, bilinear(coarse(image), (9, 13)), atol=1e-5)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        ((0, 8), (1, 1), r"--sliding-window is 0 8; height and width must be at least 1"),
        ((8, 8), (4, -1), r"--stride is 4 -1; height and width must be at least 1"),
        ((8, 16), (8, 17), r"--stride 8 17 leaves pixels between windows of 8 x 16; use at most 8 16"),
        ((8, 16), (9, 16), r"--stride 9 16 leaves pixels"),
    ],
)
def test_windows_that_cannot_cover_an_image_are_refused_at_once(window, stride, message):
    with pytest.raises(ConfigError, match=message) as error:
        sliding_window(pixelwise, picture(8, 8), window=window, stride=stride)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("window", "stride"), [((512, 1024), (341, 682)), ((1, 2), (1, 1))])
def test_windows_overlap_by_a_third_unless_told(window, stride):
    assert default_stride(window) == stride


# ---- memory ----


class Largest(TorchDispatchMode):
    """Notes the most bytes that any one operation returned in a tensor of its own."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, math.prod(tensor.shape) * tensor.element_size())
        return result


def many_classes(image):
    return F.avg_pool2d(image[:, :1].float(), 8, ceil_mode=True).expand(-1, 40, -1, -1)


def test_no_enlarged_map_of_all_classes_is_held():
    image = picture(256, 512)
    with Largest() as largest:
        multi_scale_flip(many_classes, image)
    assert largest.bytes == 40 * 256 * 512 * 4  # the sum, at the image's own size


def test_a_tall_image_takes_no_more_than_its_strips():
    image = picture(2048, 128)
    with Largest() as largest:
        for _ in sliding_window(many_classes, image, window=(64, 128), stride=(32, 64)):
            pass
    assert largest.bytes < 3 * 40 * 64 * 128 * 4 < 40 * 2048 * 128 * 4


# ---- as a flag of the command line ----


@pytest.fixture
def evaluate(folder, tmp_path):
    """`segmv3 evaluate` over the folder's three validation images of 48x64, with further flags."""
    weights, config = tmp_path / "w.safetensors", tmp_path / "tiny.py"
    torch.manual_seed(0)
    checkpoint.save(create_model("lraspp_small_d8", 4), weights, classes=read_classes(folder)[0])
    config.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        f"data = Data(dataset='folder', root=Path({str(folder)!r}), workers=0)\n"
        "config = Config(model=NETS['lraspp_small_d8'], data=data, schedule=Schedule(steps=1))\n"
    )
    return lambda *flags: main(["evaluate", str(config), "--weights", str(weights), *map(str, flags)])


def test_windows_are_scored_and_recorded(evaluate, tmp_path):
    found = {}
    for name, flags in {
        "whole": [],
        "one": ["--sliding-window", 48, 64],
        "larger": ["--sliding-window", 480, 640, "--stride", 48, 64],
        "many": ["--sliding-window", 32, 33],
    }.items():
        assert evaluate(*flags, "--output", tmp_path / f"{name}.json") == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["one"]["confusion_matrix"] == found["whole"]["confusion_matrix"]
    assert found["larger"]["confusion_matrix"] == found["whole"]["confusion_matrix"]
    assert found["many"]["confusion_matrix"] != found["whole"]["confusion_matrix"]
    assert "sliding_window" not in found["whole"] and found["one"]["stride"] == [32, 42]
    assert (found["many"]["sliding_window"], found["many"]["stride"]) == ([32, 33], [21, 22])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stride", "8", "8"], "config: --stride needs --sliding-window HEIGHT WIDTH"),
        (["--sliding-window", "0", "8"], "config: --sliding-window is 0 8; height and width must be at least 1"),
        (["--sliding-window", "8", "8", "--stride", "9", "8"], "config: --stride 9 8 leaves pixels between windows"),
        (["--sliding-window", "8", "8", "--multi-scale-flip"], "config: --multi-scale-flip and --sliding-window are"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(evaluate, flags, message, capsys):
    assert evaluate(*flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

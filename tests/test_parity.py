"""The same weights give the same numbers here and in the package they come from: random weights, three sizes."""

import hashlib
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from segmv3.models.backbones import MobileNetV3, Tap
from segmv3.models.classifier import ImageClassifier
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_model
from segmv3.weights.importing import import_weights

TOLERANCE = 1e-4  # of the largest logit
TIMM = [name for name in timm.list_models("*mobilenetv3*") if name != "mobilenetv3_large_150d"]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and BN statistics under which neither signals nor gates fade or explode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, spread: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)

    def uniform(tensor: torch.Tensor) -> None:
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                normal(module.weight, math.sqrt(1.4 / math.prod(module.weight.shape[1:])))
                if module.bias is not None:
                    normal(module.bias, 0.1)
            elif isinstance(module, nn.BatchNorm2d):
                uniform(module.weight)
                normal(module.bias, 0.1)
                normal(module.running_mean, 0.1)
                uniform(module.running_var)
    return model.eval()


def difference(theirs, ours, size: tuple[int, int]) -> float:
    """Largest difference of the logits, as a share of the largest logit; theirs take normalised images."""
    image = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs(ours.normalize(image))
        expected = expected["out"] if isinstance(expected, dict) else expected
        found = ours(image)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def imported(model: nn.Module, path: Path) -> Segmenter | ImageClassifier:
    torch.save(model.state_dict(), path)
    return import_weights(path).model()


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name, tmp_path):
    theirs = randomised(timm.create_model(name))
    ours = imported(theirs, tmp_path / f"{name}.pth")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert max(difference(theirs, ours, size) for size in ((224, 224), (97, 129), (66, 50))) <= TOLERANCE
    # dilated, timm gives feature maps only
    for stride in (8, 16, 32):
        dilated = timm.create_model(name, features_only=True, output_stride=stride).eval()
        dilated.load_state_dict(theirs.state_dict(), strict=False)
        settings = replace(ours.config.backbone, output_stride=stride, dilate_first=False)
        backbone = MobileNetV3Backbone(settings, tuple(Tap(s) for s in (2, 4, 8, 16))).eval()
        backbone.load_state_dict(ours.backbone.state_dict())
        for size in ((224, 224), (97, 129), (66, 50)):
            image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
            with torch.inference_mode():
                for found, expected in zip(backbone(image), dilated(image), strict=True):
                    assert found.shape == expected.shape
                    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max(), (stride, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize(
    "options", [{}, {"width_mult": 0.75}, {"width_mult": 0.35}, {"width_mult": 1.25}, {"reduced_tail": True}]
)
def test_torchvision_classifiers(size, options, tmp_path):
    theirs = randomised(getattr(torchvision.models, f"mobilenet_v3_{size}")(**options))
    ours = imported(theirs, tmp_path / "weights.pth")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert max(difference(theirs, ours, s) for s in ((224, 224), (97, 129), (33, 64))) <= TOLERANCE


@pytest.mark.parametrize("reduced_tail", [False, True])
@pytest.mark.parametrize("size", ["large", "small"])
def test_torchvision_lraspp(size, reduced_tail, tmp_path):
    from torchvision.models.segmentation.lraspp import _lraspp_mobilenetv3

    backbone = getattr(torchvision.models, f"mobilenet_v3_{size}")(dilated=True, reduced_tail=reduced_tail)
    theirs = randomised(_lraspp_mobilenetv3(backbone, 21))
    ours = imported(theirs, tmp_path / "weights.pth")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert max(difference(theirs, ours, s) for s in ((385, 385), (97, 129), (128, 256))) <= TOLERANCE


class TheirSqueeze(nn.Module):
    """d-li14's squeeze-and-excite, written here from its description: linear layers, ReLU, hard sigmoid."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels))

    def forward(self, x):
        return x * nn.functional.hardsigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("width", [1.0, 0.75])
def test_dli14_squeezes_before_it_activates(size, width, tmp_path):
    """Their package cannot be installed; this is its net in its own order, from its published tables."""
    from segmv3.models.mobilenetv3 import hidden_channels, layout, stem_channels

    net = MobileNetV3(size=size, width=width, family="d-li14", bn_eps=1e-5)
    stem, features = stem_channels(net), []
    features.append(nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.Hardswish()))
    channels = stem

    class Theirs(nn.Module):
        def __init__(self, channels_in, block):
            super().__init__()
            act = nn.ReLU if block.activation == "relu" else nn.Hardswish
            mid, padding = block.expanded, block.kernel // 2
            depthwise = nn.Conv2d(mid, mid, block.kernel, block.stride, padding, groups=mid, bias=False)
            squeeze = TheirSqueeze(mid, block.squeeze) if block.squeeze else nn.Identity()
            project = [nn.Conv2d(mid, block.out, 1, bias=False), nn.BatchNorm2d(block.out)]
            if channels_in == mid:
                layers = [depthwise, nn.BatchNorm2d(mid), act(), squeeze, *project]
            else:
                expand = [nn.Conv2d(channels_in, mid, 1, bias=False), nn.BatchNorm2d(mid), act()]
                layers = [*expand, depthwise, nn.BatchNorm2d(mid), squeeze, act(), *project]
            self.conv = nn.Sequential(*layers)
            self.shortcut = block.stride == 1 and channels_in == block.out

        def forward(self, x):
            return x + self.conv(x) if self.shortcut else self.conv(x)

    for block in layout(net):
        features.append(Theirs(channels, block))
        channels = block.out
    deep, hidden = block.expanded, hidden_channels(net)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*features)
            self.conv = nn.Sequential(nn.Conv2d(channels, deep, 1, bias=False), nn.BatchNorm2d(deep), nn.Hardswish())
            self.classifier = nn.Sequential(
                nn.Linear(deep, hidden), nn.Hardswish(), nn.Dropout(), nn.Linear(hidden, 1000)
            )

        def forward(self, x):
            return self.classifier(self.conv(self.features(x)).mean((2, 3)))

    theirs = randomised(Whole())
    ours = imported(theirs, tmp_path / "weights.pth")
    assert ours.config.backbone == net
    assert max(difference(theirs, ours, s) for s in ((224, 224), (97, 129), (33, 64))) <= TOLERANCE


GOLDEN = Path(__file__).with_name("golden_mmseg.npz")


def formula_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor from its name in mmsegmentation and its shape alone, so that no weights need to be stored."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind in ("running_mean", "bias"):
        values = generator.standard_normal(shape) * 0.1
    elif len(shape) == 1:  # running_var and BN's weight
        values = generator.uniform(0.5, 1.5, shape)
    else:
        values = generator.standard_normal(shape) * math.sqrt(1.4 / math.prod(shape[1:]))
    return values.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["large", "small"])
def test_mmsegmentation(size, tmp_path):
    """Against outputs of the real package (golden_mmseg.npz).

    They were made with mmsegmentation 1.2.2, mmengine 0.10.7 and mmcv-lite 2.1.0 (with a stub for the unused
    `mmcv.ops`), on a CPU in float32, from the package's own configs `mobilenet-v3-d8_lraspp_...` and
    `mobilenet-v3-d8-s_lraspp_...` with BN in place of SyncBN, the weights of `formula_weights` under mmseg's names
    and noise images drawn by numpy's PCG64 from seed 0. The file keeps 1000 logits of each run, taken at the
    head's own resolution (1/2), with shape, largest logit and checksums of what went in.
    """
    from segmv3.weights.formats import MMSEG
    from segmv3.weights.importing import their_names

    net = create_model(f"lraspp_{size}_d8_mmseg")
    theirs = dict(zip(net.state_dict(), their_names(MMSEG, net.config), strict=True))
    weights = {theirs[name]: formula_weights(theirs[name], tuple(t.shape)) for name, t in net.state_dict().items()}
    torch.save({"state_dict": {name: torch.from_numpy(w) for name, w in weights.items()}}, tmp_path / "mmseg.pth")
    ours = import_weights(tmp_path / "mmseg.pth").model()
    with np.load(GOLDEN) as golden:
        total = sum(np.abs(w.astype(np.float64)).sum() for w in weights.values())
        assert total == pytest.approx(float(golden[f"{size}/weights_sum"]), rel=1e-9), "numpy draws otherwise now"
        names = [key.split("/")[1] for key in golden if key.startswith(f"{size}/") and key.endswith("/shape")]
        assert len(names) >= 3
        for name in names:
            height, width = (int(side) for side in name.split("_")[1].split("x"))
            pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (height, width, 3)).astype(np.uint8)
            assert zlib.crc32(pixels.tobytes()) == golden[f"{size}/{name}/image_crc"], "numpy draws otherwise now"
            with torch.inference_mode():
                found = ours.low_logits(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].numpy()
            assert found.shape == tuple(golden[f"{size}/{name}/shape"])
            places = np.random.Generator(np.random.PCG64(1)).integers(0, found.size, 1000)
            apart = np.abs(found.ravel()[places] - golden[f"{size}/{name}/samples"]).max()
            assert apart <= TOLERANCE * golden[f"{size}/{name}/max"], (name, apart)

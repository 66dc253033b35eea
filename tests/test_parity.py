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
TIMM = timm.list_models("*mobilenetv3*")


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
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
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


# Tables 1 and 2 of the paper as re-implementations have them: kernel, expanded and output channels, whether there is
# squeeze-and-excite, h-swish rather than ReLU, stride. d-li14 has the expansion as a factor of the input.
LARGE = [
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
]  # fmt: skip
SMALL = [
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
]  # fmt: skip
TABLES = {"large": LARGE, "small": SMALL}
FACTORS = {
    "large": (1, 4, 3, 3, 3, 3, 6, 2.5, 2.3, 2.3, 6, 6, 6, 6, 6),
    "small": (1, 4.5, 3.67, 4, 6, 6, 3, 3, 6, 6, 6),
}


def divisible(value: float) -> int:
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Linears(nn.Module):
    """A squeeze of linear layers (d-li14, ShowLo): ReLU inside, hard sigmoid."""

    def __init__(self, channels: int, squeezed: int, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed, bias=bias), nn.ReLU(), nn.Linear(squeezed, channels, bias=bias)
        )

    def forward(self, x):
        return x * nn.functional.hardsigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]


class Summed(nn.Module):
    """d-li14's block."""

    def __init__(self, channels: int, kernel: int, mid: int, out: int, squeezes: int, swish: int, stride: int) -> None:
        super().__init__()
        act = nn.Hardswish if swish else nn.ReLU
        depthwise = conv(mid, mid, kernel, stride, mid)
        squeeze = Linears(mid, divisible(mid // 4), True) if squeezes else nn.Identity()
        project = [conv(mid, out), nn.BatchNorm2d(out)]
        if channels == mid:
            layers = [depthwise, nn.BatchNorm2d(mid), act(), squeeze, *project]
        else:
            expand = [conv(channels, mid), nn.BatchNorm2d(mid), act()]
            layers = [*expand, depthwise, nn.BatchNorm2d(mid), squeeze, act(), *project]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


class Halves(nn.Module):
    """ShowLo's block, in two parts: the squeeze before the activation, without bias, its channels not rounded."""

    def __init__(self, channels: int, kernel: int, mid: int, out: int, squeezes: int, swish: int, stride: int) -> None:
        super().__init__()
        act = nn.Hardswish if swish else nn.ReLU
        squeeze = Linears(mid, mid // 4, False) if squeezes else nn.Sequential()
        filtering = [conv(mid, mid, kernel, stride, mid), nn.BatchNorm2d(mid), squeeze, act()]
        self.shortcut = stride == 1 and channels == out
        norm = nn.BatchNorm2d(out)
        if self.shortcut:
            norm = nn.Sequential()
            norm.add_module("lastBN", nn.BatchNorm2d(out))
        if channels == mid:
            self.conv1, self.conv2 = nn.Sequential(*filtering), nn.Sequential(conv(mid, out), norm)
        else:
            self.conv1 = nn.Sequential(conv(channels, mid), nn.BatchNorm2d(mid), act())
            self.conv2 = nn.Sequential(*filtering, conv(mid, out), norm)

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class Joined(nn.Module):
    """sqlai's block: BN in the squeeze, a convolution in each shortcut that changes the shape, activation after it."""

    def __init__(self, channels: int, kernel: int, mid: int, out: int, squeezes: int, swish: int, stride: int) -> None:
        super().__init__()
        self.act = nn.Hardswish() if swish else nn.ReLU()
        self.conv1, self.bn1 = conv(channels, mid), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = conv(mid, mid, kernel, stride, mid), nn.BatchNorm2d(mid)
        self.se = nn.Module() if squeezes else None
        if squeezes:
            few = max(mid // 4, 8)
            gate = [conv(mid, few), nn.BatchNorm2d(few), nn.ReLU(), conv(few, mid), nn.Hardsigmoid()]
            self.se.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), *gate)
        self.conv3, self.bn3 = conv(mid, out), nn.BatchNorm2d(out)
        self.skip = nn.Sequential()
        if stride == 2:
            self.skip = nn.Sequential(conv(channels, channels, 3, 2, channels), nn.BatchNorm2d(channels))
        if channels != out:
            self.skip.extend([conv(channels, out, bias=stride == 2), nn.BatchNorm2d(out)])

    def forward(self, x):
        y = self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        y = y * self.se.se(y) if self.se else y
        return self.act(self.bn3(self.conv3(y)) + self.skip(x))


class Whole(nn.Module):
    """A classifier as a project puts it together; its modules are named by the keywords."""

    def __init__(self, *order: tuple[str, nn.Module]) -> None:
        super().__init__()
        for name, module in order:
            self.add_module(name, module)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


def dli14(size: str, width: float) -> nn.Module:
    channels = divisible(16 * width)
    features: list[nn.Module] = [nn.Sequential(conv(3, channels, 3, 2), nn.BatchNorm2d(channels), nn.Hardswish())]
    for (kernel, _, out, *rest), factor in zip(TABLES[size], FACTORS[size], strict=True):
        mid, out = divisible(channels * factor), divisible(out * width)
        features.append(Summed(channels, kernel, mid, out, *rest))
        channels = out
    hidden = 1280 if size == "large" else 1024
    return Whole(
        ("features", nn.Sequential(*features)),
        ("conv", nn.Sequential(conv(channels, mid), nn.BatchNorm2d(mid), nn.Hardswish())),
        ("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        ("classifier", nn.Sequential(nn.Linear(mid, hidden), nn.Hardswish(), nn.Dropout(), nn.Linear(hidden, 1000))),
    )


def showlo(size: str) -> nn.Module:
    channels = 16
    features: list[nn.Module] = [nn.Sequential(conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.Hardswish())]
    for kernel, mid, out, *rest in TABLES[size]:
        features.append(Halves(channels, kernel, mid, out, *rest))
        channels = out
    hidden = 1280 if size == "large" else 1024
    return Whole(
        ("featureList", nn.Sequential(*features, nn.Sequential(conv(out, mid), nn.BatchNorm2d(mid), nn.Hardswish()))),
        ("last_stage_layers", nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(mid, hidden), nn.Hardswish(), nn.Flatten())),
        ("classifier", nn.Sequential(nn.Dropout(), nn.Linear(hidden, 1000))),
    )


def sqlai(size: str) -> nn.Module:
    rows = [(k, 672 if size == "large" and i == 13 else mid, *rest) for i, (k, mid, *rest) in enumerate(TABLES[size])]
    channels, blocks = 16, []
    for kernel, mid, out, *rest in rows:
        blocks.append(Joined(channels, kernel, mid, out, *rest))
        channels = out
    return Whole(
        ("conv1", conv(3, 16, 3, 2)), ("bn1", nn.BatchNorm2d(16)), ("hs1", nn.Hardswish()),
        ("bneck", nn.Sequential(*blocks)),
        ("conv2", conv(out, mid)), ("bn2", nn.BatchNorm2d(mid)), ("hs2", nn.Hardswish()),
        ("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        ("linear3", nn.Linear(mid, 1280, bias=False)), ("bn3", nn.BatchNorm1d(1280)), ("hs3", nn.Hardswish()),
        ("linear4", nn.Linear(1280, 1000)),
    )  # fmt: skip


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize(
    ("family", "width", "build"),
    [("d-li14", 1.0, dli14), ("d-li14", 0.75, dli14), ("showlo", 1.0, showlo), ("sqlai", 1.0, sqlai)],
)
def test_reimplementations_that_cannot_be_installed(family, width, build, size, tmp_path):
    """Their nets, written here from their descriptions and published tables; none of it comes from our own layout."""
    theirs = randomised(build(size, width) if family == "d-li14" else build(size))
    ours = imported(theirs, tmp_path / "weights.pth")
    assert ours.config.backbone == MobileNetV3(size=size, width=width, family=family, bn_eps=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
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

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segmv3.training.losses import chunked, cpu
from segmv3.training.losses.functional import channel_distillation, cross_entropy, hard_pixels

devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)


def batch(shape, size, *, seed=0, unlabelled=0.1, dtype=torch.int64):
    """Logits, and labels of which a share is missing."""
    random = torch.Generator().manual_seed(seed)
    low = 3 * torch.randn(*shape, generator=random)
    labels = torch.randint(0, shape[1], (shape[0], *size), generator=random)
    labels[torch.rand(labels.shape, generator=random) < unlabelled] = 255
    return low, labels.to(dtype)


def plain(low, labels, *, weights=None, smoothing=0.0):
    """What the loss means, with all logits at full size, in double precision."""
    full = F.interpolate(low.double(), labels.shape[1:], mode="bilinear", align_corners=False)
    weights = None if weights is None else weights.double()
    options = {"ignore_index": 255, "reduction": "sum", "label_smoothing": smoothing}
    total = F.cross_entropy(full, labels.long(), weight=weights, **options)
    known = labels != 255
    return total, known.sum() if weights is None else weights[labels[known].long()].sum()


def check(low, labels, **options):
    """Loss, count and gradient are those of the plain loss, in float32."""
    low = low.detach().requires_grad_()
    found, expected = cross_entropy(low, labels, **options), plain(low, labels, **options)
    assert found[0].dtype == torch.float32 and found[0].shape == found[1].shape == ()
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=1e-7 * labels.numel())
    torch.testing.assert_close(found[1].double(), expected[1].double(), rtol=1e-6, atol=0)
    [ours], [theirs] = (torch.autograd.grad(total, low) for total in (found[0], expected[0]))
    assert ours.dtype == low.dtype and ours.shape == low.shape
    # a gradient is a probability less one where the net is sure: float32 knows it to an absolute 1e-7
    assert (ours - theirs).abs().max() <= 1e-5 * float(theirs.abs().max()) + 1.2e-7
    return ours


CONTRACT = [
    ((2, 19, 8, 16), (64, 128)),
    ((2, 5, 8, 8), (33, 17)),
    ((2, 5, 8, 8), (5, 3)),
    ((1, 4, 7, 9), (7, 9)),
    ((1, 4, 7, 9), (7, 31)),
    ((1, 4, 7, 9), (20, 9)),
    ((3, 3, 1, 1), (5, 4)),
    ((1, 3, 1, 40), (1, 1)),
    ((1, 3, 2, 2), (150, 261)),
    ((1, 1, 6, 5), (13, 11)),
    ((1, 255, 3, 4), (19, 23)),
    ((2, 3, 25, 31), (13, 17)),
    ((1, 3, 45, 67), (46, 66)),
    ((1, 3, 40, 20), (480, 320)),
]
"""Shapes of logits and sizes of labels: up, down, neither, one way only, one pixel, odd, 1 and 255 classes, bands."""

INGREDIENTS = [{}, {"weights": True}, {"smoothing": 0.1}, {"weights": True, "smoothing": 0.3}]


def ingredients(options, classes, device="cpu"):
    if "weights" in options:
        weights = torch.rand(classes, generator=torch.Generator().manual_seed(1), dtype=torch.float32) + 0.2
        options = options | {"weights": weights.to(device)}
    return options


@devices
@pytest.mark.parametrize("options", INGREDIENTS)
@pytest.mark.parametrize(("shape", "size"), CONTRACT)
def test_loss_and_gradient_are_those_of_interpolate_and_cross_entropy(shape, size, options, device):
    low, labels = batch(shape, size)
    check(low.to(device), labels.to(device), **ingredients(options, shape[1], device))


@settings(deadline=None, max_examples=60)
@given(
    *(
        st.integers(1, 3),
        st.integers(1, 12),
        st.tuples(*[st.integers(1, 20)] * 2),
        st.tuples(*[st.integers(1, 90)] * 2),
    ),
    *(st.sampled_from([0.0, 0.5, 0.98]), st.sampled_from(INGREDIENTS), st.integers(0, 2**31)),
)
def test_any_shape_and_size(count, classes, low, size, unlabelled, options, seed):
    logits, labels = batch((count, classes, *low), size, unlabelled=unlabelled, seed=seed)
    check(logits, labels, **ingredients(options, classes))


@pytest.mark.parametrize("options", INGREDIENTS)
@pytest.mark.parametrize("size", [(9, 10), (3, 2), (1, 1)])
def test_double_precision_is_kept_and_passes_gradcheck(options, size):
    low, labels = batch((2, 3, 3, 4), size)
    low, options = low.double().requires_grad_(), ingredients(options, 3)
    total, _ = cross_entropy(low, labels, **options)
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, plain(low, labels, **options)[0])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, **options)[0], low)


@pytest.mark.parametrize("options", INGREDIENTS)
def test_the_torch_version_in_strips_of_any_size(options):
    """It stands in on a device that is no CPU and has no Triton."""
    low, labels = batch((2, 5, 9, 7), (61, 50))
    options = ingredients(options, 5)
    own = options.get("weights", torch.ones(5)) * (1 - options.get("smoothing", 0))
    spread = options.get("weights", torch.ones(5)) * options.get("smoothing", 0) / 5
    low.requires_grad_()
    expected, _ = plain(low, labels, **options)
    for elements in (2**18, 300):
        found = chunked.sums(low.detach(), labels, own, spread, differentiate=True, pixels=True, elements=elements)
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=0)
        gradient = torch.autograd.grad(expected, low, retain_graph=True)[0]
        assert (found[3] - gradient).abs().max() < 1e-5 * gradient.abs().max()
        torch.testing.assert_close(found[4].double().sum(), expected, rtol=1e-6, atol=0)


# ---- what goes in and comes out ----


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_single(dtype, device):
    low, labels = batch((2, 5, 8, 9), (64, 70))
    half = low.to(device, dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    totals = [cross_entropy(x, labels.to(device))[0] for x in (half, single)]
    assert torch.equal(*totals) and totals[0].dtype == torch.float32
    [ours], [expected] = (torch.autograd.grad(*pair) for pair in zip(totals, (half, single), strict=True))
    assert ours.dtype == dtype and torch.equal(ours, expected.to(dtype))


@devices
def test_autocast_changes_nothing_but_the_logits(device):
    low, labels = (x.to(device) for x in batch((2, 5, 8, 9), (64, 70)))
    with torch.autocast(device, torch.bfloat16):
        check(low, labels, smoothing=0.1)
    convolution = torch.nn.Conv2d(5, 5, 1).to(device)
    with torch.autocast(device, torch.bfloat16):
        logits = convolution(low)
        total, count = cross_entropy(logits, labels)
        (total / count).backward()
    assert logits.dtype == torch.bfloat16 and convolution.weight.grad.dtype == torch.float32


@devices
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_layouts_and_label_types_give_the_same_bits(dtype, device):
    low, labels = (x.to(device) for x in batch((2, 5, 8, 9), (64, 70), dtype=dtype))
    expected = check(low, labels)
    wide = torch.zeros(2, 9, 10, 5, device=device).permute(0, 3, 2, 1)
    wide[:, :, :8] = low
    for same in (
        low.to(memory_format=torch.channels_last),
        wide[:, :, :8],
        low.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(check(same, labels), expected)
    assert torch.equal(check(low, labels.transpose(1, 2).contiguous().transpose(1, 2)), expected)


@devices
def test_without_labels_there_is_no_loss_and_no_gradient(device):
    low, labels = batch((2, 5, 4, 6), (32, 48))
    labels[:] = 255
    for options in ({}, {"smoothing": 0.2}, {"weights": torch.ones(5, device=device)}, {"ohem": 0.7, "min_kept": 50}):
        logits = low.to(device).requires_grad_()
        total, count = cross_entropy(logits, labels.to(device), **options)
        (total / count.clamp(min=1)).backward()
        assert total == 0 and count == 0 and not logits.grad.any()


@devices
def test_a_logit_that_is_not_finite_makes_the_loss_so(device):
    for value in (float("nan"), float("inf")):
        for place in (0, 4):
            for options in ({}, {"smoothing": 0.1}, {"ohem": 0.7}, {"ohem": 0.7, "min_kept": 10}):
                low, labels = batch((1, 5, 4, 6), (32, 48), unlabelled=0)
                low[0, place, 2, 3] = value
                assert not cross_entropy(low.to(device), labels.to(device), **options)[0].isfinite(), (value, options)


@pytest.mark.parametrize("scale", [1e-30, 30.0, 1e4])
def test_logits_of_any_size(scale):
    low, labels = batch((1, 5, 6, 6), (48, 48))
    check(scale * low, labels)


def test_no_gradient_is_computed_for_who_does_not_ask(monkeypatch):
    asked = []
    sums = cpu.sums

    def spy(*arrays, differentiate, **options):
        asked.append(differentiate)
        return sums(*arrays, differentiate=differentiate, **options)

    monkeypatch.setattr(cpu, "sums", spy)
    low, labels = batch((1, 5, 4, 6), (32, 48))
    cross_entropy(low, labels)
    low.requires_grad_()
    with torch.no_grad():
        assert not cross_entropy(low, labels)[0].requires_grad
    assert asked == [False, False]
    total, count = cross_entropy(low, labels)
    assert asked[2] and total.requires_grad and not count.requires_grad


def test_gradients_are_scaled_and_can_be_taken_twice_but_not_of_themselves():
    low, labels = batch((1, 5, 4, 6), (32, 48))
    low.requires_grad_()
    total, _ = cross_entropy(low, labels)
    [once], [scaled] = (torch.autograd.grad(k * total, low, retain_graph=True) for k in (1, -0.5))
    assert torch.equal(scaled, -0.5 * once)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, low, create_graph=True)


def test_any_number_of_threads_gives_the_same_bits():
    low, labels = batch((1, 5, 60, 50), (480, 400))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            logits = low.clone().requires_grad_()
            total, _ = cross_entropy(logits, labels)
            results.append((total.detach(), torch.autograd.grad(total, logits)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("low", "labels", "options", "message"),
    [
        (torch.zeros(5, 4, 4), torch.zeros(1, 8, 8), {}, r"must be floating-point N x 1-255 x h x w"),
        (torch.zeros(1, 256, 2, 2), torch.zeros(1, 8, 8), {}, r"found torch.float32 \(1, 256, 2, 2\)"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(2, 8, 8), {}, r"labels must be 1 x H x W, found \(2, 8, 8\)"),
        (torch.zeros(1, 5, 4, 4), torch.full((1, 8, 8), 5), {}, r"64 labels are neither one of 5 classes nor 255"),
        (torch.zeros(1, 5, 4, 4), torch.full((1, 8, 8), -1), {}, r"64 labels are neither one of 5 classes nor 255"),
        (torch.zeros(1, 5, 4, 4), torch.full((1, 8, 8), 1000), {}, r"64 labels are neither"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(1, 8, 8), {"weights": torch.ones(4)}, r"weights must be 5, .* \(4,\)"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(1, 8, 8), {"smoothing": 1.0}, r"smoothing is 1.0"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(1, 8, 8), {"ohem": 0.0}, r"OHEM threshold is 0.0; it must be above 0"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(1, 8, 8), {"ohem": 1.1}, r"OHEM threshold is 1.1"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(1, 8, 8), {"ohem": 1, "min_kept": -1}, r"OHEM minimum is -1"),
    ],
)
def test_wrong_arguments(low, labels, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(low, labels.long(), **options)


def test_wrong_label_types():
    with pytest.raises(ValueError, match=r"labels must be uint8 or int64, found torch.float32"):
        cross_entropy(torch.zeros(1, 5, 4, 4), torch.zeros(1, 8, 8))


# ---- OHEM ----


@devices
@pytest.mark.parametrize("threshold", [1e-6, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [0, 1, 500, 3000, 10**6])
def test_the_hardest_pixels_are_kept(threshold, min_kept, device):
    low, labels = (x.to(device) for x in batch((2, 5, 8, 9), (40, 50), dtype=torch.uint8))
    full = F.interpolate(low, labels.shape[1:], mode="bilinear", align_corners=False)
    chance = full.softmax(1).gather(1, labels.where(labels != 255, 0)[:, None].long())[:, 0]
    chance[labels == 255] = 2
    limit = max(threshold, float(chance.flatten().sort().values[min(min_kept, int((labels != 255).sum())) - 1])
                if min_kept else 0)  # fmt: skip
    kept = hard_pixels(low, labels, threshold, min_kept)
    assert kept.dtype == labels.dtype and torch.equal(kept[kept != 255], labels[kept != 255])
    sure = ((chance - limit).abs() > 1e-5 * limit) & (labels != 255)
    assert torch.equal((kept != 255)[sure], (chance < limit)[sure])
    assert (kept != 255).sum() >= min(min_kept, (labels != 255).sum())
    expected = cross_entropy(low, kept, smoothing=0.1)
    assert all(map(torch.equal, cross_entropy(low, labels, ohem=threshold, min_kept=min_kept, smoothing=0.1), expected))


# ---- distillation ----


@devices
def test_channel_distillation_is_the_papers_formula(device):
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 5, 6, generator=random).to(device) for _ in range(2))
    student.requires_grad_(), teacher.requires_grad_()
    total, count = channel_distillation(student, teacher, 3.0)
    assert count == 8
    expected = 0.0
    for n in range(2):
        for c in range(4):
            p, q = ((x[n, c].flatten() / 3).softmax(0) for x in (teacher, student))
            expected += 9 * (p * (p / q).log()).sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    total.backward()
    assert student.grad.any() and teacher.grad is None
    assert channel_distillation(student, student, 3.0)[0].abs() < 1e-5
    finer = F.interpolate(teacher, (10, 12), mode="bilinear", align_corners=False)
    same = F.interpolate(finer, (5, 6), mode="bilinear", align_corners=False)
    assert torch.equal(channel_distillation(student, finer, 3.0)[0], channel_distillation(student, same, 3.0)[0])


def test_channel_distillation_refuses_other_classes():
    with pytest.raises(ValueError, match=r"same images x classes, found 2 x 4 and 2 x 5"):
        channel_distillation(torch.zeros(2, 4, 3, 3), torch.zeros(2, 5, 3, 3), 3.0)
    with pytest.raises(ValueError, match=r"temperature is 0; it must be above 0"):
        channel_distillation(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3), 0)


# ---- the kernel for GPUs ----

INTERPRETED = """
import sys
sys.path.insert(0, {folder!r})
import torch
from test_losses import CONTRACT, INGREDIENTS, batch, ingredients, plain
from segmv3.training.losses import cuda

def check(low, labels, options):
    options = ingredients(options, low.shape[1])
    own, spread = options.get("weights", torch.ones(low.shape[1])), None
    if s := options.get("smoothing"):
        own, spread = own * (1 - s), own * s / len(own)
    low = low.requires_grad_()
    expected, weight = plain(low, labels, **options)
    gradient, = torch.autograd.grad(expected, low)
    total, weights, labelled, slopes, pixels = cuda.sums(
        low.detach(), labels, own, spread, differentiate=True, pixels=True)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pixels.double().sum(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((weights / (1 - options.get("smoothing", 0))).double(), weight.double())
    assert labelled == (labels != 255).sum()
    assert (slopes - gradient).abs().max() <= 1e-5 * max(float(gradient.abs().max()), 1e-3), options

for i, (shape, size) in enumerate(CONTRACT):
    # interpreted it is slow
    if shape[1] * size[0] * size[1] < 1500 and cuda.largest_cell(shape[2:], size) <= cuda.LARGEST_CELL:
        low, labels = batch(shape, size)
        if i % 2:
            labels = labels.byte()
        check(low, labels, INGREDIENTS[i % 4])
low, labels = batch((2, 3, 2, 4), (16, 32))
for options in INGREDIENTS:
    check(low.to(memory_format=torch.channels_last), labels, options)
    check(low[:, :, :, ::2], labels, options)
cuda._CORNERS = 1
check(low, labels, {{}})
labels[0, 3, 4] = 3
assert cuda.sums(low.detach(), labels, torch.ones(3), None, differentiate=False, pixels=False)[0].isnan()
labels[:] = 255
total, _, _, slopes, _ = cuda.sums(low.detach(), labels, torch.ones(3), None, differentiate=True, pixels=False)
assert total == 0 and not slopes.any()
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_the_triton_kernel_keeps_the_contract_where_it_is_interpreted():
    script = INTERPRETED.format(folder=str(Path(__file__).parent))
    env = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=300, env=env)

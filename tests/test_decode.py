import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import decode as benchmark
from segmv3.decode import label_map, label_map_and_confidence, reference_label_map

MARGIN = 1e-5

devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(classes: int, height: int, width: int) -> torch.Tensor:
    """Large areas of one class each, as a net gives them."""
    rough = random(1, classes, -(-height // 6), -(-width // 6), scale=4)
    return F.interpolate(rough, (height, width), mode="nearest") + random(1, classes, height, width, seed=1, scale=0.2)


def check(found: tuple[torch.Tensor, torch.Tensor], logits: torch.Tensor, size: tuple[int, int]) -> None:
    """The labels are those of interpolate and argmax, or their logits within rounding of the largest."""
    full = F.interpolate(logits.detach().float().cpu().contiguous(), size, mode="bilinear", align_corners=False)
    labels, confidence = (values.cpu() for values in found)
    assert labels.dtype == torch.uint8 and confidence.dtype == torch.float32
    assert labels.shape == confidence.shape == (logits.shape[0], *size)
    behind = full.amax(1) - full.gather(1, labels[:, None].long())[:, 0]
    assert behind.max() < MARGIN
    assert torch.allclose(confidence, full.softmax(1).amax(1), atol=2e-5)


CONTRACT = [
    ((1, 19, 16, 32), (128, 256)),
    ((2, 5, 8, 8), (33, 17)),
    ((2, 5, 8, 8), (5, 3)),
    ((1, 4, 7, 9), (7, 9)),
    ((1, 4, 7, 9), (7, 31)),
    ((1, 4, 7, 9), (20, 9)),
    ((3, 3, 1, 1), (5, 4)),
    ((1, 3, 1, 40), (1, 1)),
    ((1, 3, 2, 2), (300, 517)),
    ((1, 1, 6, 5), (13, 11)),
    ((1, 256, 3, 4), (19, 23)),
    ((1, 6, 50, 61), (13, 17)),
    ((1, 3, 45, 67), (46, 66)),
]
"""Shapes of logits and sizes of labels: up, down, neither, one way only, one pixel, odd, a batch, 1 and 256 classes."""


@devices
@pytest.mark.parametrize(("shape", "size"), CONTRACT)
def test_labels_are_those_of_bilinear_then_argmax(shape, size, device):
    for logits in (random(*shape).to(device), random(*shape).to(device, memory_format=torch.channels_last)):
        found = label_map_and_confidence(logits, size)
        check(found, logits, size)
        assert found[0].device == logits.device
        assert torch.equal(label_map(logits, size), found[0])
        check(reference_label_map(logits, size), logits, size)


@devices
@pytest.mark.parametrize("size", [(192, 384), (100, 200), (53, 101), (24, 48), (1, 7)])
def test_insides_are_filled_and_outlines_interpolated(size, device):
    logits = blobs(19, 24, 48).to(device)
    check(label_map_and_confidence(logits, size), logits, size)


@settings(deadline=None, max_examples=150)
@given(
    *(
        st.integers(1, 3),
        st.integers(1, 24),
        st.tuples(*[st.integers(1, 40)] * 2),
        st.tuples(*[st.integers(1, 200)] * 2),
    ),
    *(st.sampled_from([0.01, 1.0, 4.0]), st.integers(0, 2**31), st.integers(1, 4)),
)
@example(1, 19, (40, 40), (320, 320), 1.0, 0, 2)
@example(1, 2, (1, 40), (3, 13), 1.0, 0, 1)
def test_any_shape_and_size(count, classes, low, size, scale, seed, threads):
    logits = random(count, classes, *low, seed=seed, scale=scale)
    check(label_map_and_confidence(logits, size, threads=threads), logits, size)
    assert torch.equal(label_map(logits, size, threads=1), label_map(logits, size, threads=threads))


@devices
@settings(deadline=None, max_examples=100)
@given(st.integers(1, 9), st.tuples(*[st.integers(1, 12)] * 2), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**31))
def test_ties_go_to_the_lower_id(device, classes, low, ratio, seed):
    """Whole logits and powers of two: nothing is rounded, so every label is decided."""
    logits = torch.randint(-1, 2, (1, classes, *low), generator=torch.Generator().manual_seed(seed)).float()
    logits[logits == 0] *= -1  # minus zero equals zero
    size = (low[0] * ratio, low[1] * ratio)
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(label_map(logits.to(device), size).cpu().long(), expected)


def test_classes_that_are_equal_everywhere():
    logits = random(1, 1, 5, 6).repeat(1, 4, 1, 1)
    assert not label_map(logits, (41, 50)).any()
    logits[:, 2] += 1
    assert (label_map(logits, (41, 50)) == 2).all()


def test_a_class_that_leads_at_no_corner_can_win_inside():
    logits = torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]], [[8.0, 8.0]]]])
    assert set(label_map(logits, (1, 16)).unique().tolist()) == {0, 1, 2}
    check(label_map_and_confidence(logits, (1, 16)), logits, (1, 16))


# ---- what goes in and comes out ----


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(dtype, device):
    logits = random(1, 4, 6, 7).to(device, dtype)
    assert torch.equal(label_map(logits, (30, 31)), label_map(logits.float(), (30, 31)))


def test_arrays_in_any_layout():
    logits = random(2, 3, 6, 7).numpy()
    expected = label_map(torch.from_numpy(logits), (30, 31)).numpy()
    frozen = logits.copy()
    frozen.flags.writeable = False
    for same in (
        frozen,
        np.asfortranarray(logits),
        logits[:, ::-1].copy()[:, ::-1],
        np.repeat(logits, 2, 3)[..., ::2],
        logits.astype(np.float64),
    ):
        found = label_map(same, (30, 31))
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8
        assert np.array_equal(found, expected)
    assert np.array_equal(label_map(np.broadcast_to(logits[:1], logits.shape), (30, 31))[1], expected[0])
    assert label_map(logits[:0], (30, 31)).shape == (0, 30, 31)


def test_gradients_end_here():
    assert not label_map(random(1, 3, 4, 4).requires_grad_(), (8, 8)).requires_grad


@devices
def test_merged_classes_are_renamed_after_the_winner_is_found(device):
    logits = random(1, 4, 6, 7).to(device)
    labels, confidence = label_map_and_confidence(logits, (48, 56))
    table = [7, 0, 255, 7]
    for merge in (table, np.array(table + [9] * 252, np.uint8)):
        merged, same = label_map_and_confidence(logits, (48, 56), merge=merge)
        assert torch.equal(merged, torch.tensor(table, device=device)[labels.long()].to(torch.uint8))
        assert torch.equal(same, confidence)
        assert torch.equal(label_map(logits, (48, 56), merge=merge), merged)
        assert torch.equal(reference_label_map(logits, (48, 56), merge)[0], merged)


@devices
def test_logits_that_are_not_finite_are_bounded(device):
    logits = random(1, 4, 6, 7)
    expected = label_map(logits, (48, 56))
    logits[:, 1] = float("nan")
    masked = logits.clone()
    masked[:, 1] = -float("inf")
    labels, confidence = label_map_and_confidence(logits.to(device), (48, 56))
    assert not (labels == 1).any() and (labels.cpu() == expected)[expected != 1].all()
    assert torch.equal(labels, label_map(masked.to(device), (48, 56)))
    check((labels, confidence), logits.nan_to_num(nan=-(2.0**100)), (48, 56))
    logits[0, 2, 3, 3] = float("inf")
    logits[0, :, 0, 0] = float("nan")
    labels, confidence = label_map_and_confidence(logits.to(device), (48, 56))
    assert (labels[0, 21:35, 21:35] == 2).all() and confidence.isfinite().all()
    assert labels[0, 0, 0] == 0 and confidence[0, 0, 0] == 0.25
    assert torch.equal(labels, reference_label_map(logits.to(device), (48, 56))[0])


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(4, 3, 3), {}, r"N x 1-256 x h x w, found torch.float32 \(4, 3, 3\)"),
        (torch.zeros(1, 257, 3, 3), {}, r"found torch.float32 \(1, 257, 3, 3\)"),
        (torch.zeros(1, 0, 3, 3), {}, r"found torch.float32 \(1, 0, 3, 3\)"),
        (np.zeros((1, 4, 0, 3), np.float32), {}, r"found float32 \(1, 4, 0, 3\)"),
        (np.zeros((1, 4, 3, 3), np.int64), {}, "must be floating-point"),
        (torch.zeros(1, 4, 3, 3), {"size": (0, 8)}, "size is 0 x 8; both must be at least 1"),
        (torch.zeros(1, 4, 3, 3), {"threads": 0}, "threads is 0"),
        (torch.zeros(1, 4, 3, 3), {"merge": [0, 1, 2]}, "merge must hold an id 0-255 for each of the 4 classes"),
        (torch.zeros(1, 4, 3, 3), {"merge": [0, 1, 2, 256]}, "merge must hold an id 0-255"),
        (torch.zeros(1, 4, 3, 3), {"merge": [0.0, 1.0, 2.0, 3.0]}, "merge must hold an id 0-255"),
    ],
)
def test_wrong_arguments(logits, options, message):
    with pytest.raises(ValueError, match=message):
        label_map(logits, **{"size": (8, 8), **options})


# ---- threads and memory ----


def test_calls_from_many_threads_agree():
    logits = [random(1, 7, 32, 48, seed=seed) for seed in range(4)]
    expected = [label_map_and_confidence(x, (256, 384), threads=1) for x in logits]
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(lambda i: label_map_and_confidence(logits[i % 4], (256, 384), threads=1 + i % 5), range(64))
        )
    for i, values in enumerate(found):
        assert all(map(torch.equal, values, expected[i % 4]))


LIVES = """
import os, threading, numpy as np
from segmv3.decode import label_map
logits = np.random.default_rng(0).normal(size=(1, 4, 64, 64)).astype(np.float32)
expected = label_map(logits, (512, 512), threads=4)
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(label_map(logits, (512, 512), threads=4), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def late():
    threading.main_thread().join()
    print(np.array_equal(label_map(logits, (512, 512), threads=4), expected))

threading.Thread(target=late).start()
"""


@pytest.mark.slow
def test_a_forked_process_and_a_thread_that_outlives_the_program_get_labels():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", LIVES], stdout=subprocess.PIPE, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "True\n")


def test_no_enlarged_map_of_floats_is_held():
    logits = random(1, 19, 32, 64).numpy()
    label_map(logits, (256, 512))
    tracemalloc.start()
    label_map(logits, (256, 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 256 * 512


# ---- the kernel for GPUs ----

INTERPRETED = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, torch
from test_decode import CONTRACT, check, random
from segmv3.decode import cuda, reference_label_map
for shape, size in CONTRACT:
    if shape[0] * shape[1] * size[0] < 80:  # interpreted it is slow
        logits = random(*shape)
        table = np.arange(shape[1], dtype=np.int32)
        check(cuda.label_map(logits.to(memory_format=torch.channels_last), size, table, confidence=True), logits, size)
logits = random(2, 4, 6, 7)
logits[0, 1], logits[:, 2, 3, 3], logits[:, :, 0, 0] = -float("inf"), float("inf"), float("nan")
table = np.array([9, 8, 7, 6], np.int32)
for dtype in (torch.bfloat16, torch.float32):
    values = logits.to(dtype)
    expected = reference_label_map(values, (12, 14), [9, 8, 7, 6])
    found = cuda.label_map(values, (12, 14), table, confidence=True)
    assert torch.equal(found[0], expected[0]) and torch.allclose(found[1], expected[1], atol=1e-5)
    assert torch.equal(cuda.label_map(values, (12, 14), table, confidence=False)[0], found[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_the_triton_kernel_keeps_the_contract_where_it_is_interpreted():
    script = INTERPRETED.format(folder=str(Path(__file__).parent))
    env = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=300, env=env)


# ---- the benchmark ----


def test_the_benchmark_times_what_agrees():
    ours, torchs = benchmark.IMPLEMENTATIONS[0], benchmark.IMPLEMENTATIONS[3]

    def fails(case):
        raise RuntimeError("no C++\ncompiler")

    for case in benchmark.cases((64, 128), classes=5):
        timings = benchmark.time_decoders(
            case, 3, implementations=(ours, torchs, benchmark.Implementation("compiled", fails))
        )
        assert [timing.name for timing in timings] == [ours.name, torchs.name, "compiled"]
        assert all(timing.times and len(timing.times.seconds) == 3 for timing in timings[:2])
        assert timings[2].times is None and timings[2].reason == "cannot run here (no C++ compiler)"


def test_the_benchmark_refuses_other_labels():
    case = benchmark.cases((64, 128), classes=5)[0]
    wrong = benchmark.Implementation("theirs", lambda case: lambda: 1 + label_map(case.logits, case.size))
    with pytest.raises(benchmark.DecodingError, match=r"theirs gives 8,192 other labels than torch for the street"):
        benchmark.time_decoders(case, 1, implementations=(wrong,))

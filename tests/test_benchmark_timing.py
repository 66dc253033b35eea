"""Timing in turns, the watch on other programs, peak memory, floors, fresh nets and receipts."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segmv3.benchmark import timing
from segmv3.benchmark.memory import peak_memory
from segmv3.benchmark.nets import Place, chosen, fresh, open_fresh, settling
from segmv3.benchmark.pictures import drive, streets
from segmv3.benchmark.receipt import Conditions, receipt, write_receipt
from segmv3.benchmark.roofline import matrix_gflops, work_of
from segmv3.benchmark.timing import BusyError, Others, Times, in_turns, refuse_busy, time_in_turns
from segmv3.errors import ModelError, ResourceError
from segmv3.models.count import gmacs
from segmv3.models.zoo import NETS, create_model


class Clock:
    """Time that passes only when something is called."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def work(self, name, seconds):
        self.now += seconds
        self.calls.append(name)
        return len(self.calls)


seconds_of_calls = st.integers(1, 20 * 1024).map(lambda count: count / 1024)  # of which every sum is exact


@given(st.lists(seconds_of_calls, min_size=1, max_size=5), st.integers(1, 30), st.none() | st.floats(0.1, 50))
def test_turns_are_shared_out(lengths, repeat, budget):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: clock.now)
        measures = {i: partial(clock.work, i, seconds) for i, seconds in enumerate(lengths)}
        reported = []
        found = in_turns(measures, repeat, budget=budget, progress=lambda *counts: reported.append(counts))
    for i, seconds in enumerate(lengths):
        count = len(found[i])
        assert found[i] == sorted(found[i]) and min(repeat, 3) <= count <= repeat
        if budget is None:
            assert count == repeat
        elif count > 3:
            assert count * seconds <= budget * (1 + 1e-9)
        # once before all turns, and once before each turn that is short
        assert clock.calls.count(i) == 1 + count * (1 if seconds >= 1 else 2)
    assert reported[-1][0] == reported[-1][1] == sum(map(len, found.values()))


def test_turns_alternate_and_slow_ones_are_spread():
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: clock.now)
        in_turns({"fast": partial(clock.work, "fast", 0.1), "slow": partial(clock.work, "slow", 4)}, 9, budget=12)
    timed = [name for name, _ in itertools.groupby(clock.calls[2:])]
    assert timed == ["fast", "slow"] * 3
    assert [len(list(group)) for name, group in itertools.groupby(clock.calls[2:]) if name == "fast"] == [6, 6, 6]


def test_a_first_call_that_compiled_does_not_make_a_call_slow():
    clock = Clock()
    seconds = iter([5.0] + [0.1] * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: clock.now)
        found = in_turns({"a": lambda: clock.work("a", next(seconds))}, 4)
    assert len(found["a"]) == 4 and len(clock.calls) == 1 + 1 + 3 * 2  # only the second was thought to be slow


def test_what_was_called_already_is_not_warmed_up_again():
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: clock.now)
        in_turns({"a": partial(clock.work, "a", 4), "b": partial(clock.work, "b", 4)}, 2, called={"a": 4.0})
    assert clock.calls == ["b", "a", "b", "a", "b"]


def test_times_are_summed_up():
    times = Times((0.001, 0.002, 0.009))
    assert times.median == 0.002 and 0.002 < times.p95 < 0.009
    assert times.facts() == {"median_ms": 2.0, "p95_ms": 8.3, "ms": [1.0, 2.0, 9.0]}
    assert time_in_turns({"a": lambda: None}, 4)["a"].median >= 0


@pytest.mark.parametrize(("used", "refused"), [(0.0, False), (0.3, False), (0.4, True), (3.9, True), (None, False)])
def test_a_busy_machine_is_refused(used, refused, monkeypatch):
    monkeypatch.setattr(Others, "cores", lambda self: used)
    monkeypatch.setattr(timing, "core_count", lambda: 4)
    monkeypatch.delattr(timing.os, "getloadavg", raising=False)
    if refused:
        with pytest.raises(BusyError, match=rf"use {used} of 4 CPU cores; .* --force"):
            refuse_busy(seconds=0)
    assert refuse_busy(seconds=0, force=True) == used
    assert timing.is_busy(used) is refused


def test_without_proc_the_load_average_counts(monkeypatch):
    monkeypatch.setattr(Others, "cores", lambda self: None)
    monkeypatch.setattr(timing, "core_count", lambda: 4)
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (2.5, 1.0, 1.0), raising=False)
    with pytest.raises(BusyError, match=r"use 2\.5 of 4"):
        refuse_busy(seconds=0)


def test_own_work_is_not_that_of_others(monkeypatch):
    clocks = iter([(0.0, 50.0, 7.0), (10.0, 65.0, 12.0)])  # 15 s busy in 10, 5 of them ours
    monkeypatch.setattr(timing, "_clocks", lambda: next(clocks))
    assert Others().cores() == pytest.approx(1.0)
    monkeypatch.setattr(timing, "_clocks", lambda: None)
    assert Others().cores() is None


def test_peak_memory_is_that_of_the_work():
    found = peak_memory(partial(np.ones, 20_000_000))
    assert 150 < found.peak - found.before < 1000  # 153 MiB, and numpy itself
    assert found.facts() == {"before": round(found.before), "peak": round(found.peak)}


@pytest.mark.slow
def test_what_goes_wrong_in_the_memory_process_arrives_here():
    with pytest.raises(ModelError, match="there is no net 'lraspp'"):
        peak_memory(partial(create_model, "lraspp"))
    with pytest.raises(ResourceError, match="was killed"):
        peak_memory(partial(timing.os._exit, 9))


def test_work_is_counted():
    net = NETS["lraspp_small_d8"]
    work = work_of(net, (64, 128))
    with torch.device("meta"):
        model = create_model(net)
    assert work.gflop == pytest.approx(2 * gmacs(model, (64, 128)))
    assert work.weights == sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert work.values > 3 * 64 * 128 + 16 * 32 * 64  # the first layer alone
    assert work.gbytes("fp32") == pytest.approx(4 * (work.values + work.weights) / 1e9)
    assert work.gbytes("fp16", 16) == pytest.approx(2 * (16 * work.values + work.weights) / 1e9)
    assert matrix_gflops("int8") is None


def test_streets_have_the_sizes_asked_for():
    sizes = [(64, 128), (33, 41), (100, 80)]
    found = streets(sizes)
    assert {size: picture.shape for size, picture in found.items()} == {size: (*size, 3) for size in sizes}
    assert all(picture.dtype == np.uint8 and picture.flags.c_contiguous for picture in found.values())
    own = np.full((10, 10, 3), 7, np.uint8)
    assert (streets([(20, 30)], own)[20, 30] == 7).all()
    assert len({frame.tobytes() for frame in drive(found[64, 128], 5)}) == 5


@pytest.mark.parametrize("name", ["lraspp_small_d8", "paper_02_v2_rf2_raspp", "lraspp_small_d8_mmseg"])
def test_fresh_nets_are_settled_and_the_same_every_time(name):
    from segmv3.models.zoo import net

    picture = streets([(64, 128)])[64, 128]
    model = fresh(net(name), picture)
    assert not model.training
    with torch.inference_mode():
        logits = model.low_logits(settling(picture))
        assert torch.equal(logits, fresh(net(name), picture).low_logits(settling(picture)))
    assert 0.01 < logits.std() < 100
    assert len(logits.argmax(1).unique()) > 3  # as in a street, and not one class everywhere


def test_what_auto_means_for_fresh_nets(tmp_path, monkeypatch):
    from segmv3.benchmark import nets
    from segmv3.runtime import backends

    place = Place("cpu", 1, tmp_path)
    for module in (nets, backends):
        monkeypatch.setattr(module, "has_bf16", lambda: True)
    monkeypatch.setattr(nets, "installed", lambda name: True)
    assert chosen("auto", "auto", place) == ("openvino", "bf16")
    assert chosen("onnxruntime", "auto", place) == ("onnxruntime", "fp32")
    assert chosen("auto", "auto", Place("cuda", 1, tmp_path)) == ("torch", "fp16")
    with pytest.raises(ModelError, match="does not run in bf16 by onnxruntime"):
        chosen("onnxruntime", "bf16", place)
    with pytest.raises(ModelError, match="does not run in int8"):
        chosen("auto", "int8", place)
    for module in (nets, backends):
        monkeypatch.setattr(module, "has_bf16", lambda: False)
    assert chosen("auto", "auto", place) == ("openvino", "fp32")
    with pytest.raises(ModelError, match="this CPU does not calculate in bf16; it has fp32"):
        chosen("onnxruntime", "bf16", place)
    monkeypatch.setattr(nets, "installed", lambda name: name == "torch")
    assert chosen("auto", "auto", place) == ("torch", "fp32")
    with pytest.raises(ModelError, match=r'openvino backend is not installed; pip install "segmv3\[export\]"'):
        chosen("openvino", "auto", place)
    with pytest.raises(ModelError, match="leave --device cuda out"):
        monkeypatch.setattr(nets, "installed", lambda name: True)
        chosen("openvino", "auto", Place("cuda", 1, tmp_path))


@pytest.mark.slow
def test_a_fresh_net_is_converted_once(tmp_path):
    pytest.importorskip("openvino")
    place = Place("cpu", 1, tmp_path)
    picture = streets([(64, 128)])[64, 128]
    net = NETS["lraspp_small_d8"]
    labels = open_fresh(net, picture, "openvino", "fp32", place)(picture)
    [graph] = tmp_path.glob("*.xml")
    written = graph.stat().st_mtime_ns
    assert (open_fresh(net, picture, "openvino", "fp32", place)(picture) == labels).all()
    assert graph.stat().st_mtime_ns == written
    agreement = (open_fresh(net, picture, "torch", "fp32", place)(picture) == labels).mean()
    assert agreement > 0.999


def test_receipts_say_on_what(tmp_path):
    conditions = Conditions("segmv3 benchmark peers --force", 0.25)
    content = receipt(
        "peers", conditions, {"repeat": 2}, rows=[{"name": "a", "ms": [1.0, 2.0]}, {"name": "b"}], none=[]
    )
    path = tmp_path / "new" / "receipt.json"
    write_receipt(path, content)
    assert json.loads(path.read_text()) == content
    assert content["machine"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert content["cores_used_by_others"]["before"] == 0.25 and content["command"].endswith("--force")
    assert '{"name": "a", "ms": [1.0, 2.0]},\n' in path.read_text()  # a row is a line

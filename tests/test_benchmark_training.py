"""`segmv3 benchmark training`: whole steps of ours and of others, what is printed and left behind."""

import json
import pickle
from functools import partial

import pytest
import torch
import torchvision
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import training
from benchmarks.training import Case, Row, baselines, cases, crops, torchvisions
from segmv3.benchmark import timing
from segmv3.benchmark.memory import Peak
from segmv3.benchmark.nets import Place
from segmv3.benchmark.timing import Times
from segmv3.cli import main
from segmv3.models.count import parameters
from segmv3.models.zoo import NETS, create_model

QUICK = ["--force", "--repeat", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def _narrow_and_impatient(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(timing, "refuse_busy", partial(timing.refuse_busy, seconds=0.02))


def test_crops_are_those_of_any_run():
    images, labels = crops((50, 70), 3)
    assert images.shape == (3, 3, 50, 70) and labels.shape == (3, 50, 70)
    assert images.dtype == labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {*range(19), 255} and 255 in labels
    assert torch.equal(crops((50, 70), 3)[0], images) and images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_step_learns(tmp_path):
    """Every kind of step moves the weights of its net by its gradient."""
    moved = []

    def noted(optimizer, *_, **__):
        moved.append([p for group in optimizer.param_groups for p in group["params"] if p.grad is not None])

    hook = register_optimizer_step_post_hook(noted)
    try:
        for kind in ("ours", "same net", "torchvision", "mmsegmentation"):
            net = "lraspp_small_d8_mmseg" if kind == "mmsegmentation" else "lraspp_small_d8"
            case = Case(kind, net, (32, 64), 2, kind)
            step = case.open(Place("cpu", 1, tmp_path))
            step()
            before = [p.detach().clone() for p in moved[-1]]
            step()
            changed = [not torch.equal(old, new) for old, new in zip(before, moved[-1], strict=True)]
            assert len(changed) > 100 and sum(changed) > 0.9 * len(changed), kind
    finally:
        hook.remove()


@pytest.mark.parametrize("size", ["large", "small"])
def test_the_same_net_is_the_same_net(size):
    """Ours as torchvision's net has the parameters of the plain loop's."""
    from torchvision.models.segmentation.lraspp import _lraspp_mobilenetv3

    theirs = _lraspp_mobilenetv3(getattr(torchvision.models, f"mobilenet_v3_{size}")(dilated=True), 19)
    ours = create_model(torchvisions(NETS[f"lraspp_{size}_d8"]), 19)
    assert parameters(ours) == parameters(theirs)


def test_the_cases_of_some_nets():
    found = cases(
        ["lraspp_large_d8", "lraspp_large_plus", "lraspp_large_d8_mmseg"], (64, 128), 2, ["bf16"], [False, True]
    )
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    assert sum(case.kind == "ours" for case in found) == 6 and sum(case.compile for case in found) == 4
    plain = [case for case in found if case.kind in ("torchvision", "mmsegmentation")]
    assert [case.kind for case in plain] == ["torchvision", "torchvision", "mmsegmentation"]  # one sibling of two nets
    assert all(case.precision == "fp32" and not case.compile for case in plain)
    assert {case.kind for case in cases(["lraspp_large_d8"], (64, 128), 2, ["fp32"], [False], peers=False)} == {"ours"}
    ways = cases(["lraspp_large_d8"], (64, 128), 2, ["fp32"], [False, True], [False, True], peers=False)
    assert [(case.compile, case.recompute) for case in ways] == [(False, False), (False, True), (True, False)]


def test_each_row_stands_beside_the_fastest_plain_loop_of_its_kind():
    def row(kind, net, seconds):
        return Row(Case(f"{kind} {net} {seconds}", net, (8, 8), 4, kind), "", Times((seconds,)) if seconds else None)

    rows = [
        row("ours", "lraspp_large_d8", 0.5),
        row("torchvision", "lraspp_large_d8", 2.0),
        row("torchvision", "lraspp_large_d8", 1.0),
        row("mmsegmentation", "lraspp_large_d8_mmseg", 4.0),
        row("ours", "lraspp_large_d8_mmseg", 1.0),
        row("ours", "lraspp_small_d8", 0.1),
        row("torchvision", "lraspp_small_d8", 0),
    ]
    found = {case.name: rate for case, rate in baselines(rows).items()}
    assert found["ours lraspp_large_d8 0.5"] == 4.0  # images per second of the faster of two
    assert found["ours lraspp_large_d8_mmseg 1.0"] == 1.0
    assert "ours lraspp_small_d8 0.1" not in found  # its plain loop could not be timed
    assert rows[0].images_per_second == 8 and rows[0].hours == pytest.approx(320_000 * 0.5 / 3600)


@pytest.mark.slow
def test_the_command_prints_a_table_and_leaves_a_receipt(tmp_path, monkeypatch, capsys):
    def broken(case, images, labels):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(training, "_mmsegmentation", broken)
    monkeypatch.setattr(training, "matrix_gflops", lambda *_: 1e6)
    monkeypatch.setattr(training, "copied_gbytes", lambda *_: 20.0)
    output = tmp_path / "steps.json"
    nets = ["--net", "lraspp_small_d8", "lraspp_small_d8_mmseg"]
    command = ["training", *nets, "--size", "64", "128", "--batch", "2", "--precision", "bf16", "--no-memory"]
    command += ["--recompute", "off", "on"]
    assert main(["benchmark", *command, *QUICK, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    rules = [line for line in shown.splitlines() if "───" in line]
    assert rules and max(map(len, rules)) <= 100
    assert "a training step of 64x128, batch 2" in shown
    assert "mmsegmentation's lraspp_small_d8 (our copy), plain loop: cannot be used (no kernel for this)" in shown
    receipt = json.loads(output.read_text())
    assert receipt["benchmark"] == "training" and receipt["settings"]["batch"] == [2]
    rows = {row["name"]: row for row in receipt["rows"]}
    assert rows["mmsegmentation's lraspp_small_d8 (our copy), plain loop"]["reason"].startswith("cannot be used")
    ours = rows["segmv3 lraspp_small_d8, bf16"]
    assert rows["segmv3 lraspp_small_d8, bf16, recomputed"]["recompute"] and not ours["recompute"]
    assert ours["images_per_second"] == pytest.approx(2000 / ours["median_ms"], rel=0.01)
    assert ours["times_plain"] > 0 and ours["floor_ms"] > 0 and ours["bound"] == "memory"
    assert rows["torchvision LR-ASPP Small, plain loop, channels_last"]["precision"] == "fp32"


@pytest.mark.slow
def test_memory_and_floor_stand_in_the_row(tmp_path, monkeypatch):
    def elsewhere(work):  # tests/test_benchmark_timing.py has the process
        pickle.loads(pickle.dumps(work))()
        return Peak(100.0, 300.0)

    monkeypatch.setattr(training, "peak_memory", elsewhere)
    monkeypatch.setattr(training, "matrix_gflops", lambda *_: 1.0)
    monkeypatch.setattr(training, "copied_gbytes", lambda *_: 1e6)
    case = Case("ours", "lraspp_small_d8", (64, 128), 4)
    row = training.time_steps([case], Place("cpu", 1, tmp_path), 1)[0]
    assert row.memory == 300
    assert row.bound == "compute" and row.floor == pytest.approx(row.gflop)
    assert row.gflop == pytest.approx(
        3 * 4 * 2 * 2.67 / 256, rel=0.05
    )  # GMACs at 1024x2048; squeezes do not shrink with it


@pytest.mark.slow
def test_each_shape_is_compiled_for_itself(tmp_path, monkeypatch):
    shapes = []

    def backend(graph, inputs):
        shapes.append([tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 4][-1:])
        assert not any(isinstance(each, torch.SymInt) for each in inputs)
        return graph.forward

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend=backend, **options))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)  # of 8, as three more nets would reach it
    names = [f"batch {batch}" for batch in (1, 2, 3)]
    steps = [Case(name, "lraspp_small_d8", (32, 64), n, compile=True) for n, name in enumerate(names, 1)]
    rows = training.time_steps(steps, Place("cpu", 1, tmp_path), 1, memory=False)
    assert [row.reason for row in rows] == ["", "", ""] and len(shapes) == 3


def test_compiled_steps_run_where_torch_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    step = Case("ours", "lraspp_small_d8", (32, 64), 2, compile=True).open(Place("cpu", 1, tmp_path))
    step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_run_on_cuda(precision, tmp_path):
    found = cases(["lraspp_small_d8"], (64, 128), 2, [precision], [False])
    for row in training.time_steps(found, Place("cuda", 1, tmp_path), 1):
        assert row.times and row.memory and row.memory > 1, row.reason


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch is 0"),
        (["--batch", "4", "4"], "--batch names one twice"),
        (["--size", "0", "64"], "--size is 0 64"),
        (["--net", "lraspp_huge_d8"], "there is no net 'lraspp_huge_d8'"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--budget", "0"], "--budget is 0"),
        (["--compile", "on", "on"], "--compile names one twice"),
        (["--compile", "on", "--recompute", "on"], "--recompute on needs --compile off"),
        (["--precision", "fp16", "--device", "cpu", "--force"], "--precision fp16 trains on a GPU only"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, capsys):
    assert main(["benchmark", "training", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

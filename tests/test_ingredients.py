"""What a training may be given beside the plain loss: heads, a teacher, parts, processes, precision, compilation."""

import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import crash
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from segmv3 import checkpoint
from segmv3.checkpoint import Card
from segmv3.config import SGD, AdamW, Classifier, Distill, Loss, RMSProp, Schedule
from segmv3.data.check import class_pixels
from segmv3.data.datasets import open_dataset
from segmv3.errors import CheckpointError, ConfigError, ModelError, NumericsError, ResourceError
from segmv3.evaluation.counting import confusion_matrix
from segmv3.evaluation.labelling import single_scale
from segmv3.images import read_ids, write_png
from segmv3.labels import IGNORE
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import NETS, PAPER_NETS, create_classifier, create_model
from segmv3.training import compiling, loop, teacher
from segmv3.training.auxiliary import WithAuxiliaryHeads
from segmv3.training.average import MovingAverage
from segmv3.training.compiling import Compilation
from segmv3.training.loop import train
from segmv3.training.losses import Seen
from segmv3.training.losses.functional import channel_distillation, cross_entropy
from segmv3.training.optim import build_optimizer, set_lr
from segmv3.training.segmentation import SegmentationTask
from segmv3.training.sync_bn import synchronise
from segmv3.weights.averaging import average, origin_of

NAMES = ("road", "house", "tree", "sky")


def state_of(run: Path) -> dict:
    state = checkpoint.load_state(run / "state")
    assert state is not None
    return state


def same(a: Path, b: Path, tolerance: float = 1e-6) -> None:
    """Weights, BN statistics and momentum (the gradients) of two runs agree, each relative to its tensor's largest."""
    ours, theirs = state_of(a), state_of(b)
    assert ours["step"] == theirs["step"]
    pairs = [(ours["model"][name], theirs["model"][name]) for name in ours["model"]]
    for mine, other in zip(*(state["optimizer"]["state"].values() for state in (ours, theirs)), strict=True):
        pairs.append((mine["momentum_buffer"], other["momentum_buffer"]))
    assert len(pairs) > 200
    for mine, other in pairs:
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * largest)


def hide_labels(root: Path) -> None:
    """Leave every image another share of its labels."""
    for i, path in enumerate(sorted((root / "train" / "labels").iterdir())):
        labels = read_ids(path)
        labels[: 7 * i] = IGNORE
        write_png(path, labels)


# --- auxiliary heads


@pytest.mark.parametrize("name", [*NETS, *list(PAPER_NETS)[:3]])
def test_every_net_takes_auxiliary_heads(name):
    net = create_model(name, 4).eval()
    wrapped = WithAuxiliaryHeads(net).eval()
    image = torch.randint(0, 256, (1, 3, 65, 97), dtype=torch.uint8)
    with torch.inference_mode():
        low, fine, deep = wrapped.low_logits(image)
        assert torch.equal(low, net.low_logits(image))
    stride = net.config.backbone.output_stride
    assert fine.shape == (1, 4, 9, 13)
    assert deep.shape == (1, 4, -(-65 // stride), -(-97 // stride))


def test_auxiliary_heads_train_and_are_left_behind(config, tmp_path):
    helped = replace(config, loss=Loss(auxiliary=0.4))
    train(helped, tmp_path / "run", device="cpu", threads=1)
    net, _ = checkpoint.load(tmp_path / "run" / "best.safetensors")
    state = state_of(tmp_path / "run")
    heads = {name for name in state["model"] if name.startswith("heads.")}
    assert {name.removeprefix("net.") for name in state["model"]} - heads == set(net.state_dict())
    torch.manual_seed(config.seed)
    fresh = WithAuxiliaryHeads(create_model(config.model, 4)).state_dict()
    assert all(not torch.equal(state["model"][name], fresh[name]) for name in heads if name.endswith("weight"))


def test_the_auxiliary_loss_is_the_weighted_sum_of_three(config):
    task = SegmentationTask(replace(config, loss=Loss(auxiliary=0.25)))
    task.prepare(torch.device("cpu"), lambda dataset: torch.from_numpy(class_pixels(dataset)))
    low = [torch.randn(2, 4, h, 2 * h) for h in (4, 4, 2)]
    targets = torch.randint(0, 4, (2, 32, 64), dtype=torch.uint8)
    targets[0, :9] = IGNORE
    assert [term.weight for term in task.terms] == [1, 0.25, 0.25]
    for term, logits in zip(task.terms, low, strict=True):
        total, count = term.sums(Seen(targets, targets, low[0], low[1:]))
        full = F.interpolate(logits, (32, 64), mode="bilinear")
        assert torch.allclose(total / count, F.cross_entropy(full, targets.long(), ignore_index=IGNORE))
        assert term.denominator is not None and term.denominator(targets) == count


@pytest.mark.slow
def test_a_run_with_everything_resumes_exactly(config, tmp_path):
    teach(tmp_path / "teacher.safetensors")
    everything = replace(
        config,
        data=replace(config.data, batch_size=4),
        loss=Loss(auxiliary=0.4, class_weights="balanced"),
        distill=Distill(teacher=str(tmp_path / "teacher.safetensors")),
        optim=AdamW(lr=1e-3, head_lr=5.0),
        schedule=replace(config.schedule, accumulate=2, ema=0.9, clip_norm=1.0),
    )
    assert crash.run(everything, tmp_path / "unbroken") == 0
    assert crash.run(everything, tmp_path / "run", "between saves", 8) == 9
    assert crash.run(everything, tmp_path / "run") == 0
    assert crash.digest(tmp_path / "run") == crash.digest(tmp_path / "unbroken")


# --- a teacher


def teach(path: Path, names: tuple[str, ...] = NAMES) -> Segmenter:
    torch.manual_seed(3)
    net = create_model("lraspp_small_d8", len(names))
    checkpoint.save(net, path, classes=names)
    return net.eval()


def teach_smp(folder: Path, **settings: object) -> nn.Module:
    import segmentation_models_pytorch as smp

    from segmv3.models.smp import register

    register()
    torch.manual_seed(3)
    net = smp.Unet("segmv3_small", encoder_weights=None, **{"classes": 4} | settings)
    net.save_pretrained(folder)
    return net.eval()


def test_a_teacher_of_ours_is_followed(config, tmp_path):
    net = teach(tmp_path / "teacher.safetensors")
    taught = replace(
        config, distill=Distill(teacher=str(tmp_path / "teacher.safetensors"), weight=2.0, temperature=3.0)
    )
    task = SegmentationTask(taught)
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    low, targets = torch.randn(2, 4, 4, 6), torch.randint(0, 4, (2, 32, 48), dtype=torch.uint8)
    task.prepare(torch.device("cpu"), lambda dataset: torch.from_numpy(class_pixels(dataset)))
    _, term = task.terms
    found = term.sums(Seen(images, targets, low))
    total, count = channel_distillation(low, net.low_logits(images), 3.0)
    assert term.weight == 2 and found[1] == count == 8 and torch.allclose(found[0], total)
    assert task.teacher is not None and not task.teacher.net.training
    short = replace(taught, schedule=replace(config.schedule, steps=3))
    train(short, tmp_path / "run", device="cpu", threads=1)
    assert not any("teacher" in name for name in state_of(tmp_path / "run")["model"])
    moved = (tmp_path / "teacher.safetensors").rename(tmp_path / "moved.safetensors")
    train(replace(short, distill=replace(short.distill, teacher=str(moved))), tmp_path / "run", device="cpu")
    teach(tmp_path / "teacher.safetensors", tuple(f"class_{i}" for i in range(4)))  # numbered: taken by their order
    with pytest.raises(ConfigError, match="other settings: teacher "):
        train(short, tmp_path / "run", device="cpu")


def test_a_teacher_of_smp_sees_what_it_was_trained_on(config, tmp_path):
    net = teach_smp(tmp_path / "unet")
    opened = teacher.open_teacher(
        replace(config, distill=Distill(teacher=str(tmp_path / "unet"))), SegmentationTask(config).classes
    )
    assert opened is not None
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = net((image / 255 - mean) / std)
    assert torch.allclose(opened(image), expected, atol=1e-4)
    assert opened(image[..., :50, :70]).shape == (1, 4, 50, 70)  # no multiple of 32


def test_teachers_that_cannot_teach_are_refused_in_one_line(config, tmp_path):
    def refused(match: str, source: Path) -> None:
        with pytest.raises(CheckpointError, match=match) as found:
            train(replace(config, distill=Distill(teacher=str(source))), tmp_path / "run", device="cpu")
        assert "\n" not in str(found.value) and str(found.value).count("checkpoint: ") == 1

    refused("distill.teacher: .* does not exist", tmp_path / "none.safetensors")
    teach(tmp_path / "three.safetensors", NAMES[:3])
    refused("three.safetensors has 3 classes, the data 4, and 'sky' is not among them", tmp_path / "three.safetensors")
    teach(tmp_path / "other.safetensors", ("road", "house", "lake", "sky"))
    refused("other classes \\('lake'; the data has 'tree'\\)", tmp_path / "other.safetensors")
    checkpoint.save(create_classifier(Classifier(), 4), tmp_path / "classifier.safetensors")
    refused("is a classifier", tmp_path / "classifier.safetensors")
    (tmp_path / "empty").mkdir()
    refused("empty cannot be read; a folder that save_pretrained of segmentation-models-pytorch", tmp_path / "empty")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "best.safetensors").touch()
    refused("old is the folder of a run; name its weights, .*/old/best.safetensors", tmp_path / "old")
    teach_smp(tmp_path / "five", classes=5)
    refused("five has 5 classes, the data 4", tmp_path / "five")
    teach_smp(tmp_path / "softmax", activation="softmax2d")
    refused("does not end in logits alone", tmp_path / "softmax")
    settings = json.loads((tmp_path / "five" / "config.json").read_text())
    (tmp_path / "five" / "config.json").write_text(json.dumps(settings | {"_model_class": "create_model"}))
    refused("is no net of segmentation-models-pytorch", tmp_path / "five")
    (tmp_path / "five" / "config.json").write_text(json.dumps(settings | {"classes": 4}))
    refused("does not hold the net it names", tmp_path / "five")
    broken = teach_smp(tmp_path / "nan")
    next(broken.parameters()).data[0] = math.nan
    broken.save_pretrained(tmp_path / "nan")
    refused("nan is not finite", tmp_path / "nan")
    assert not (tmp_path / "run").exists()


# --- learning rates


@pytest.mark.parametrize("optim", [SGD(head_lr=10.0), AdamW(head_lr=10.0), RMSProp(head_lr=10.0)])
def test_the_head_has_a_learning_rate_of_its_own(optim):
    net = WithAuxiliaryHeads(create_model("lraspp_small_d8", 4))
    optimizer = build_optimizer(net, optim)
    set_lr(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        assert rates[id(parameter)] == (0.5 if name.startswith("net.backbone.") else 5.0)
    assert len(rates) == len(list(net.parameters()))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    bias = optim.weight_decay if optim.decay_bn_and_bias else 0
    assert all(decays[id(p)] == (optim.weight_decay if p.ndim > 1 else bias) for p in net.parameters())


def test_the_log_shows_the_base_rate(config, tmp_path):
    fast = replace(config, optim=SGD(lr=0.01, head_lr=3.0), schedule=replace(config.schedule, steps=3))
    train(fast, tmp_path / "run", device="cpu", threads=1)
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert 0 < first["lr"] < 0.01
    groups = state_of(tmp_path / "run")["optimizer"]["param_groups"]
    assert [g["lr"] / first["lr"] for g in groups] == pytest.approx([1, 1, 3, 3])


# --- accumulation


@pytest.fixture
def frozen(monkeypatch):
    """BN keeps the statistics it has."""
    plain = SegmentationTask.wrap

    def trained(self, net):
        module = plain(self, net)
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.training = False
                each.train = lambda mode=True, each=each: each  # type: ignore[method-assign]
        return module

    monkeypatch.setattr(SegmentationTask, "wrap", trained)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(config, tmp_path, frozen, weights):
    hide_labels(config.data.root)
    teach(tmp_path / "teacher.safetensors")
    whole = replace(
        config,
        data=replace(config.data, batch_size=4),
        loss=Loss(auxiliary=0.4, label_smoothing=0.1, class_weights=weights),
        distill=Distill(teacher=str(tmp_path / "teacher.safetensors")),
        optim=SGD(lr=1e-3),
        schedule=Schedule(steps=3, min_lr=0, eval_every=3, log_every=1),
    )
    train(whole, tmp_path / "whole", device="cpu", threads=1)
    parts = replace(whole, schedule=replace(whole.schedule, accumulate=4))
    train(parts, tmp_path / "parts", device="cpu", threads=1)
    same(tmp_path / "whole", tmp_path / "parts")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines()[0] for name in ("whole", "parts")]
    a, b = (json.loads(line)["loss"] for line in logs)
    assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.slow
def test_mined_parts_are_averaged(config, tmp_path):
    mined = replace(
        config,
        data=replace(config.data, batch_size=4),
        loss=Loss(ohem=0.9, min_kept=0.1),
        schedule=replace(config.schedule, accumulate=2),
    )
    assert train(mined, tmp_path / "run", device="cpu", threads=1).score is not None


def test_batches_that_cannot_be_parted_are_refused(config, tmp_path, monkeypatch):
    parts = replace(config, data=replace(config.data, batch_size=6), schedule=replace(config.schedule, accumulate=4))
    with pytest.raises(ConfigError, match=r"schedule\.accumulate 4: a step's 6 images .* make no 4 equal parts"):
        train(parts, tmp_path / "run", device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = replace(parts, schedule=replace(parts.schedule, accumulate=6))
    with pytest.raises(ConfigError, match="3 images of a process"):
        train(parts, tmp_path / "run", device="cpu")


def test_a_part_too_small_for_batch_norm_is_refused(config, tmp_path):
    tiny = replace(
        config,
        data=replace(config.data, batch_size=2, crop_size=(16, 16)),
        loss=Loss(auxiliary=0.4),
        schedule=replace(config.schedule, accumulate=2),
    )
    with pytest.raises(ModelError, match="a batch of 1 crops of 16x16 leaves one value per channel"):
        train(tiny, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


# --- several processes


def test_synchronised_bn_is_plain_bn_where_there_is_one_process(monkeypatch):
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(5, eps=1e-3, momentum=0.3), nn.BatchNorm2d(5, eps=1e-3, momentum=0.3)
    synchronise(nn.Sequential(ours), torch.device("cpu"))
    monkeypatch.setattr("segmv3.training.sync_bn.all_reduce", lambda value: value)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    x = torch.randn(3, 5, 4, 6, requires_grad=True)
    weights = torch.randn(3, 5, 4, 6)
    outputs = []
    for bn in (plain, ours):
        y = bn(3 + 2 * x)
        [slope] = torch.autograd.grad((y * weights).sum(), x)
        outputs.append([y, slope, *bn.state_dict().values()])
    for mine, other in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain.eval()(x), ours.eval()(x)) or torch.allclose(plain(x), ours(x), atol=1e-5)


@pytest.mark.slow
def test_two_processes_score_together_and_take_the_steps_of_one(config, tmp_path):
    """The same weights, BN statistics and gradients, with labels spread unevenly over the processes.

    In float64: in float32 the order of sums alone, through these nets of few values per channel, changes gradients by
    2e-5 of their largest. The run that is scored comes first, in the same processes: they take long to start.
    """
    hide_labels(config.data.root)
    shared = replace(
        config,
        data=replace(config.data, batch_size=4),
        loss=Loss(auxiliary=0.4, class_weights="balanced"),
        optim=SGD(lr=1e-3),
        schedule=Schedule(steps=3, min_lr=0, eval_every=3, log_every=1),
    )
    mined = replace(
        shared,
        loss=Loss(ohem=0.9, min_kept=0.2, class_weights="balanced"),
        optim=AdamW(lr=1e-3),
        schedule=Schedule(steps=6, min_lr=0, eval_every=3, save_every=2, log_every=3, ema=0.5),
    )
    names = "from pathlib import *\nfrom segmv3.config import *\n"
    (tmp_path / "config.py").write_text(f"{names}config = {mined!r}\n")
    script = tmp_path / "both.py"
    script.write_text(
        f"{names}import torch\nfrom segmv3.cli import main\nfrom segmv3.training.loop import train\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "flags = ['--run', str(folder / 'mined'), '--device', 'cpu', '--threads', '1']\n"
        "assert main(['train', str(folder / 'config.py'), *flags]) == 0\n"
        "torch.set_default_dtype(torch.float64)\n"
        f"train({shared!r}, folder / 'two', device='cpu', threads=1, quiet=True)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best: ") == 1  # one process speaks
    metrics = json.loads((tmp_path / "mined" / "metrics.json").read_text())
    weights, _ = checkpoint.load(tmp_path / "mined" / "best.safetensors")
    confusion = confusion_matrix(single_scale(weights), open_dataset(config.data, "val"), device=torch.device("cpu"))
    assert confusion.matrix.tolist() == metrics["confusion_matrix"]  # the score is that of the weights that were kept
    pixels = sum(map(sum, metrics["confusion_matrix"]))
    assert pixels == 3 * 48 * 64 and metrics["images"] == 3  # 3 images over 2 processes, each counted once
    torch.set_default_dtype(torch.float64)
    try:
        train(shared, tmp_path / "one", device="cpu", threads=1)
    finally:
        torch.set_default_dtype(torch.float32)
    same(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ConfigError, match="processes 2 -> 1") as refused:
        train(shared, tmp_path / "two", device="cpu", threads=1)
    assert "\n" not in str(refused.value)


# --- fp16


@pytest.fixture
def scaled(monkeypatch):
    """fp16's loss scale as on a GPU, with float32 arithmetic: what overflows is what a test makes overflow."""

    class Scaled(MixedPrecision):
        def forward_context(self):
            return nullcontext()

    def launch(config, device):
        fabric = Fabric(accelerator="cpu", devices=1, plugins=Scaled("16-mixed", "cpu"))
        fabric.launch()
        return fabric

    monkeypatch.setattr(loop, "launch", launch)


def test_fp16_needs_a_gpu(config, tmp_path):
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU"):
        train(replace(config, precision="fp16"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_that_overflows_is_skipped(config, tmp_path, scaled, monkeypatch, clip_norm):
    calls, moved = [0], list[int]()
    plain = MovingAverage.update

    def overflowing(low, labels, **options):
        total, labelled = cross_entropy(low, labels, **options)
        calls[0] += 1
        if calls[0] == 2:
            total.register_hook(lambda gradient: gradient * math.inf)
        return total, labelled

    def counting(self, net, step):
        moved.append(step)
        plain(self, net, step)

    monkeypatch.setattr("segmv3.training.losses.functional.cross_entropy", overflowing)
    monkeypatch.setattr(MovingAverage, "update", counting)
    schedule = replace(config.schedule, steps=4, eval_every=4, save_every=4, ema=0.5, clip_norm=clip_norm)
    train(replace(config, precision="fp16", schedule=schedule), tmp_path / "run", device="cpu", threads=1)
    assert moved == [0, 2, 3]
    state = state_of(tmp_path / "run")
    assert state["step"] == 4 and state["scaler"]["scale"] == 2.0**15
    assert all(int(each["step"]) == 3 for each in state["optimizer"]["state"].values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum(line["skipped"] for line in lines if line["event"] == "train") == 1


def test_gradients_that_always_overflow_end_the_run(config, tmp_path, scaled, monkeypatch):
    def overflowing(low, labels, **options):
        total, labelled = cross_entropy(low, labels, **options)
        total.register_hook(lambda gradient: gradient * math.inf)
        return total, labelled

    monkeypatch.setattr("segmv3.training.losses.functional.cross_entropy", overflowing)
    monkeypatch.setattr(loop, "_SMALLEST_SCALE", 2.0**12)
    with pytest.raises(NumericsError, match="all gradients overflow in fp16 at step 5"):
        train(replace(config, precision="fp16"), tmp_path / "run", device="cpu", threads=1)


# --- compilation


class Doubling(nn.Module):
    def low_logits(self, x):
        return 2 * x


def compilation(module: nn.Module, mode: str, said: list[str]) -> Compilation:
    device = torch.device("cpu")
    return Compilation(module, "low_logits", mode, device=device, everywhere=lambda v: v, say=said.append)  # type: ignore[arg-type]


def test_a_compiler_that_fails_is_said_and_left(monkeypatch):
    def broken(function):
        def call(*inputs):
            raise RuntimeError("\nNo working C++ compiler found\nmore about it")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    module, said = Doubling(), list[str]()
    compiled = compilation(module, "on", said)
    assert module.low_logits(3) == 6 == module.low_logits(3)
    assert said == ["compile: No working C++ compiler found; the run goes on without"] and compiled.used is False
    auto = compilation(Doubling(), "auto", said)
    for _ in range(14):  # all of them: other processes, whose compiler works, wait for the times of this one
        assert auto.used is None
        with auto.step():
            assert auto._module.low_logits(3) == 6
    assert auto.used is False and len(said) == 3 and "eager from here on" in said[2]


def test_a_compiler_that_fails_on_the_backward_pass_is_left_too(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no kernel for this gradient")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=broken)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    module, said = Doubling(), list[str]()
    compiled = compilation(module, "on", said)
    x = torch.ones(2, requires_grad=True)
    module.low_logits(x).sum().backward()
    assert x.grad.tolist() == [2, 2] and compiled.used is False
    assert len(said) == 1 and "no kernel for this gradient" in said[0]


@pytest.mark.parametrize(("seconds", "kept"), [(0.5, True), (2.0, False)])
def test_auto_keeps_the_faster_way(monkeypatch, seconds, kept):
    clock, calls = [0.0], list[str]()

    def compiled(function):
        def call(*inputs):
            clock[0] += seconds - 1
            calls.append("compiled")
            return function(*inputs)

        return call

    class Timed(nn.Module):
        def low_logits(self, x):
            clock[0] += 1
            return 2 * x

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: clock[0])
    module, said = Timed(), list[str]()
    choice = compilation(module, "auto", said)
    for _ in range(20):
        with choice.step():
            module.low_logits(1)
    assert choice.used is kept and len(said) == 1 and f"{seconds:.3f} s compiled" in said[0]
    assert len(calls) == (14 if kept else 8)
    module.eval()
    module.low_logits(1)
    assert len(calls) == (14 if kept else 8)  # evaluation has images of many sizes


# --- TensorBoard


@pytest.mark.slow
def test_tensorboard_shows_the_run(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config, tmp_path / "run", device="cpu", threads=1, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for kind, name in (("train", "loss"), ("train", "lr"), ("train", "images_per_second"), ("eval", "miou")):
        shown = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert shown == [(e["step"], pytest.approx(e[name], rel=1e-6)) for e in log if e["event"] == kind]
    assert [event.step for event in events.Scalars("IoU/sky")] == [6, 12]
    samples = events.Images("samples")
    assert [event.step for event in samples] == [6, 12]
    assert samples[0].width == 1536 and samples[0].height == 3 * 384


def test_tensorboard_that_is_missing_is_said_before_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ResourceError, match='needs the package tensorboard: pip install "segmv3\\[log\\]"'):
        train(config, tmp_path / "run", device="cpu", tensorboard=True)
    assert not (tmp_path / "run").exists()


# --- weight averaging


def test_the_average_is_the_mean_and_names_its_sources(tmp_path):
    nets = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = create_model("lraspp_small_d8", 4)
        for i, bn in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            bn.num_batches_tracked += 10 * seed
            bn.running_mean += seed + i
        checkpoint.save(
            net, tmp_path / f"{seed}.safetensors", classes=NAMES, score={"miou": 50.0}, origin={"licence": "X"}
        )
        nets.append(net.state_dict())
    files = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    average(files, tmp_path / "mean.safetensors")
    loaded, card = checkpoint.load(tmp_path / "mean.safetensors")
    for name, value in loaded.state_dict().items():
        stacked = torch.stack([net[name] for net in nets])
        expected = stacked.double().mean(0) if value.is_floating_point() else stacked.amax(0)
        assert torch.equal(value, expected.to(value.dtype)), name
    assert card.names == NAMES and "score" not in card.facts
    assert [each["sha256"] for each in card.facts["average_of"]] == [checkpoint.read(f).card.sha256 for f in files]
    assert card.facts["average_of"][0]["origin"] == {"licence": "X"}


def test_what_is_made_of_weights_keeps_all_that_these_were_made_of():
    made_of = {key: {"origin": {"licence": "X"}} for key in ("average_of", "adapted_from", "fitted_from")}
    card = Card(NAMES, facts=made_of | {"score": {"miou": 50.0}}, sha256="5")
    assert origin_of(Path("a/net.safetensors"), card) == {"file": "net.safetensors", "sha256": "5"} | made_of


def test_weights_that_do_not_go_together_are_refused(tmp_path):
    for name, net, names in (
        ("a", "lraspp_small_d8", NAMES),
        ("large", "lraspp_large_d8", NAMES),
        ("five", "lraspp_small_d8", (*NAMES, "car")),
        ("other", "lraspp_small_d8", NAMES[::-1]),
    ):
        checkpoint.save(create_model(net, len(names)), tmp_path / f"{name}.safetensors", classes=names)
    a, output = tmp_path / "a.safetensors", tmp_path / "mean.safetensors"
    for other, match in (
        ("large", "large.safetensors holds another net than .*a.safetensors: backbone.size 'large', not 'small'"),
        ("five", "five.safetensors has other classes than .*a.safetensors: 5, not 4"),
        ("other", "other.safetensors has other classes"),
        ("none", "none.safetensors does not exist"),
    ):
        with pytest.raises(CheckpointError, match=match):
            average([a, tmp_path / f"{other}.safetensors"], output)
    with pytest.raises(CheckpointError, match="at least two weight files, found 1"):
        average([a], output)
    assert not output.exists()

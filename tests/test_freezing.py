"""Parts of a net that training leaves as they start, and runs that end early."""

import json
from dataclasses import replace
from pathlib import Path

import crash
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from segmv3 import checkpoint
from segmv3.config import SGD, AdamW, Freeze, MobileNetV2, MobileNetV3, Model, RMSProp, Schedule, Timm
from segmv3.errors import ConfigError, ModelError
from segmv3.models.zoo import create_model
from segmv3.training.freezing import Freezing, layers_by_stride
from segmv3.training.loop import train
from segmv3.training.optim import build_optimizer, set_lr
from segmv3.training.run import Run
from segmv3.training.segmentation import SegmentationTask

BY_STAGES = Freeze(backbone=16, thaw_at=3, thaw_every=2, bn=True, bn_thaw_at=5)


def start_of(config, folder) -> dict[str, torch.Tensor]:
    """The net before its first step."""
    torch.manual_seed(config.seed)
    return create_model(config.model, 4).state_dict()


def scored_as(monkeypatch, values):
    """Evaluations give these scores, one after the other."""
    scores = iter(values)
    real = SegmentationTask.scores
    monkeypatch.setattr(SegmentationTask, "scores", lambda self, counts: real(self, counts) | {"miou": next(scores)})


# --- what is frozen when ---


def test_stages_thaw_from_the_deepest_one():
    frozen = [BY_STAGES.at(step) for step in range(10)]
    assert [stride for stride, _ in frozen] == [16, 16, 16, 8, 8, 4, 4, 2, 2, 0]
    assert [statistics for _, statistics in frozen] == [True] * 5 + [False] * 5
    assert [Freeze(backbone=32, thaw_at=2).at(step)[0] for step in range(4)] == [32, 32, 0, 0]
    assert Freeze(backbone=4).at(10**6) == (4, False) and Freeze().at(0) == (0, False)


@pytest.mark.parametrize(
    ("freeze", "says"),
    [
        (Freeze(thaw_at=5), "freeze.thaw-at: needs frozen layers: set freeze.backbone"),
        (Freeze(backbone=8, thaw_at=0), "freeze.thaw-at: must be at least 1"),
        (Freeze(backbone=8, thaw_every=5), "freeze.thaw-every: needs freeze.thaw-at"),
        (Freeze(backbone=8, thaw_at=5, thaw_every=-1), "freeze.thaw-every: must be at least 0"),
        (Freeze(bn_thaw_at=5), "freeze.bn-thaw-at: needs frozen statistics: set freeze.bn"),
        (Freeze(bn=True, bn_thaw_at=0), "freeze.bn-thaw-at: must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_one_line(freeze, says, config):
    with pytest.raises(ConfigError, match=says):
        replace(config, freeze=freeze)


@pytest.mark.parametrize("backbone", [MobileNetV3(size="small"), MobileNetV3(output_stride=8), MobileNetV2()], ids=str)
def test_every_layer_of_a_backbone_has_its_stage(backbone):
    net = create_model(Model(backbone=backbone), 4)
    layers = layers_by_stride(net.backbone)
    assert list(layers) == [2, 4, 8, 16, 32]
    found = [p for stage in layers.values() for layer in stage for p in layer.parameters()]
    assert {id(p) for p in found} == {id(p) for p in net.backbone.parameters()} and len(found) == len(set(found))


def test_stages_of_a_timm_net_and_of_one_that_tells_none():
    for name in ("resnet18", "mobilenetv4_conv_small"):
        backbone = Timm(name=name).build((), bn_momentum=0.1)
        layers = layers_by_stride(backbone)
        assert list(layers) == [2, 4, 8, 16, 32]
        found = {id(p) for stage in layers.values() for layer in stage for p in layer.parameters()}
        assert found == {id(p) for p in backbone.parameters()}
    assert list(layers_by_stride(torch.nn.Linear(1, 1))) == [32]


def test_a_backbone_without_stages_is_frozen_whole_or_refused(config):
    net = create_model(config.model, 4)
    net.backbone.layers_by_stride = None
    with pytest.raises(ModelError, match=r"has no stages up to stride 8 that could be frozen; the first is 32"):
        Freezing(net, Freeze(backbone=8))
    freezing = Freezing(net, Freeze(backbone=32))
    freezing.apply(0)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert all(p.requires_grad for p in net.head.parameters())
    assert freezing.told(0).startswith("the backbone (")
    with pytest.raises(ModelError, match=r"does not tell its stages; leave optim.layer-decay at 1"):
        build_optimizer(net, SGD(layer_decay=0.5))


# --- in a run ---


@pytest.mark.parametrize("change", [{}, {"recompute": True}], ids=str)
def test_frozen_layers_stay_to_the_bit_and_the_others_move(config, tmp_path, change, capsys):
    config = replace(config, freeze=Freeze(backbone=8), optim=SGD(lr=0.01, weight_decay=0.1), **change)
    config = replace(config, schedule=replace(config.schedule, ema=0.9, accumulate=1, min_lr=0, steps=6))
    trained = train(config, tmp_path / "run", device="cpu", threads=1)
    assert "frozen: the backbone up to stride 8 (" in capsys.readouterr().out
    state, before = checkpoint.load_state(tmp_path / "run" / "state"), start_of(config, tmp_path)
    frozen = {
        f"backbone.{name}"
        for name, _ in create_model(config.model, 4).backbone.named_parameters()
        if name.startswith("stem") or (name.startswith("blocks.") and int(name.split(".")[1]) < 3)
    }
    for kept in (state["model"], checkpoint.load(trained.weights)[0].state_dict(), state["average"]):
        same = {name for name, value in kept.items() if torch.equal(value, before[name])}
        assert frozen <= same, "no gradient, no weight decay"
        statistics = {name for name in kept if "running" in name or "num_batches" in name}
        assert {name for name in statistics if name.startswith(("backbone.stem", "backbone.blocks.2."))} <= same
        assert not any(name.startswith("backbone.blocks.9.") and "running" in name for name in same)
        assert not any(name.startswith("head.") and name.endswith("weight") for name in same)


@pytest.mark.slow
@pytest.mark.parametrize("optim", [SGD(lr=0.01), AdamW(), RMSProp(lr=0.01)], ids=str)
def test_every_optimiser_takes_parameters_that_thaw(config, tmp_path, optim):
    """In the middle of a group: the deepest stage has the head's rate."""
    config = replace(config, freeze=Freeze(backbone=32, thaw_at=1, thaw_every=1), optim=optim)
    config = replace(config, schedule=Schedule(steps=3, min_lr=0, eval_every=3, log_every=1))
    train(config, tmp_path / "run", device="cpu", threads=1, quiet=True)
    state, before = checkpoint.load_state(tmp_path / "run" / "state")["model"], start_of(config, tmp_path)
    assert not torch.equal(state["backbone.last.0.weight"], before["backbone.last.0.weight"])
    assert torch.equal(state["backbone.stem.0.weight"], before["backbone.stem.0.weight"])


def test_statistics_alone_can_be_kept(config, tmp_path):
    config = replace(config, freeze=Freeze(bn=True), schedule=replace(config.schedule, steps=6, eval_every=6))
    train(config, tmp_path / "run", device="cpu", threads=1, quiet=True)
    state, before = checkpoint.load_state(tmp_path / "run" / "state")["model"], start_of(config, tmp_path)
    assert all(torch.equal(state[name], before[name]) for name in state if "running" in name)
    scales = [name for name in state if name.endswith("0.1.weight") or name == "backbone.stem.1.weight"]
    assert scales and not any(torch.equal(state[name], before[name]) for name in scales), "scales train"


def test_gradients_of_several_processes_are_dropped(config):
    """DistributedDataParallel needs the gradients of all parameters that it was made for."""
    net = create_model(config.model, 4)
    freezing = Freezing(net, Freeze(backbone=32), shared=True)
    net.train()
    freezing.apply(0)
    net(torch.rand(2, 3, 32, 48) * 255).sum().backward()
    assert all(p.grad is not None for p in net.backbone.parameters() if p.ndim == 4)
    freezing.drop_gradients()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert any(p.grad is not None for p in net.head.parameters())
    norms = [module for module in net.backbone.modules() if isinstance(module, _BatchNorm)]
    assert not any(norm.training for norm in norms) and net.training


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_thaws_ends_in_the_same_bits(config, tmp_path):
    config = replace(config, freeze=BY_STAGES, optim=SGD(lr=0.01, layer_decay=0.7))
    config = replace(config, schedule=replace(config.schedule, ema=0.9, clip_norm=1.0, steps=12))
    assert crash.run(config, tmp_path / "whole") == 0
    for occurrence in (6, 8):  # between the stages that thaw, and where one does
        run = tmp_path / f"killed-{occurrence}"
        assert crash.run(config, run, "between saves", occurrence) == 9
        assert crash.run(config, run) == 0
        assert crash.digest(run) == crash.digest(tmp_path / "whole")
        thaws = [(e["step"], e["text"]) for e in Run(run).log.entries() if e["event"] == "thaw"]
        assert [step for step, _ in thaws] == [4, 6, 8, 10], "each is told once"
        assert thaws[1][1].startswith("frozen from here on: the backbone up to stride 4 (")
        assert thaws[-1][1] == "frozen from here on: nothing"


# --- learning rates ---


def test_stages_nearer_to_the_image_learn_slower(config):
    net = create_model(config.model, 4)
    optimizer = build_optimizer(net, SGD(layer_decay=0.5, head_lr=10.0))
    set_lr(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    assert rates[id(net.head.low_classifier.weight)] == pytest.approx(1.0)
    assert rates[id(net.backbone.last[0].weight)] == pytest.approx(0.1)
    assert rates[id(net.backbone.stem[0].weight)] == pytest.approx(0.1 * 0.5**4)


@pytest.mark.slow
def test_the_linear_rule_multiplies_the_whole_curve(config, tmp_path):
    schedule = Schedule(steps=4, warmup_steps=2, warmup_from=1e-4, min_lr=1e-5, eval_every=4, log_every=1)
    rates = []
    for reference in (0, 8):
        run = tmp_path / str(reference)
        one = replace(config, schedule=schedule, optim=SGD(lr=0.01, reference_batch=reference))  # of batch 2
        train(one, run, device="cpu", threads=1, quiet=True)
        rates.append([e["lr"] for e in Run(run).log.entries() if e["event"] == "train"])
    assert rates[1] == pytest.approx([rate / 4 for rate in rates[0]])


# --- early stopping ---


def test_a_run_ends_when_its_patience_does(config, tmp_path, monkeypatch, capsys):
    config = replace(config, schedule=Schedule(steps=12, min_lr=0, eval_every=2, log_every=2, patience=2))
    scored_as(monkeypatch, [10.0, 30.0, 30.0, 20.0, 90.0])
    done = train(config, tmp_path / "run", device="cpu", threads=1)
    assert (done.score, done.step, done.stopped) == (30.0, 4, 8)
    said = capsys.readouterr().out
    assert "stopped early at step 8 of 12: 2 evaluations without a better score (schedule.patience)" in said
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last == {"event": "stop", "step": 8, "best_step": 4, "patience": 2}
    assert "step 4 of 12; stopped early at step 8" in (tmp_path / "run" / "report.html").read_text()
    assert train(config, tmp_path / "run", device="cpu") == done, "it is finished"
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_patience_and_tells_the_end_once(config, tmp_path, monkeypatch):
    config = replace(config, schedule=Schedule(steps=12, min_lr=0, eval_every=2, log_every=2, patience=2))
    scored_as(monkeypatch, [30.0, 20.0, 10.0])

    def stop(step, score):
        if step == 4:
            raise KeyError(step)

    with pytest.raises(KeyError):
        train(config, tmp_path / "run", device="cpu", threads=1, quiet=True, on_evaluation=stop)
    done = train(config, tmp_path / "run", device="cpu", threads=1, quiet=True)
    assert (done.step, done.stopped) == (2, 6)
    done.report.unlink()  # as where the report was not written any more
    assert train(config, tmp_path / "run", device="cpu", threads=1, quiet=True).stopped == 6
    assert [e["event"] for e in Run(tmp_path / "run").log.entries()].count("stop") == 1


@pytest.mark.slow
def test_more_steps_give_new_patience(config, tmp_path, monkeypatch):
    schedule = Schedule(steps=12, min_lr=0, eval_every=2, log_every=2, patience=2)
    scored_as(monkeypatch, [30.0, 20.0, 10.0, 10.0, 40.0, 1.0, 1.0])
    assert train(replace(config, schedule=schedule), tmp_path / "run", device="cpu", quiet=True).stopped == 6
    longer = replace(config, schedule=replace(schedule, steps=14))
    done = train(longer, tmp_path / "run", device="cpu", quiet=True, extend=True)
    assert (done.score, done.step, done.stopped) == (40.0, 10, None), "its last evaluation is that of the last step"


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(config, tmp_path):
    """Its settings know nothing of what came later; tests/settings_of_0.1.txt has all that the first version wrote."""
    known = (Path(__file__).parent / "settings_of_0.1.txt").read_text().split()

    def without_later(values, group=""):
        if not isinstance(values, dict):
            return values
        every = {k: without_later(v, f"{group}{k}.") for k, v in values.items() if is_known(group + k)}
        return {k: v for k, v in every.items() if v != {}}

    def is_known(name):
        return any(each == name or each.startswith(f"{name}.") for each in known) or name.startswith("contents")

    run, config = tmp_path / "run", replace(config, optim=AdamW(lr=0.001))
    train(config, run, device="cpu", threads=1, quiet=True)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(without_later(settings)))
    assert without_later(settings).keys() == settings.keys() - {"freeze"}
    (run / "report.html").unlink()
    assert train(config, run, device="cpu", threads=1, quiet=True).stopped is None
    with pytest.raises(ConfigError, match=r"other settings: schedule.patience null -> 3"):
        train(replace(config, schedule=replace(config.schedule, patience=3)), run, device="cpu", quiet=True)


def test_patience_is_a_count(config):
    with pytest.raises(ConfigError, match=r"schedule.patience: must be at least 0"):
        replace(config, schedule=replace(config.schedule, patience=-1))

"""Fitting a net to a latency."""

import json
import shutil
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segmv3 import checkpoint, cli
from segmv3.benchmark.timing import BusyError
from segmv3.config import Classification, Classifier, Config, Data, ImageFolder, MobileNetV3, Model, Schedule
from segmv3.data.datasets import open_dataset
from segmv3.errors import CheckpointError, ConfigError, ModelError, OutputError
from segmv3.fitting import latency, run
from segmv3.fitting.cut import cut, groups_of, with_widths
from segmv3.fitting.latency import Meter, Table, key_of
from segmv3.fitting.run import fit, propose
from segmv3.fitting.settings import Fitting
from segmv3.images import write_png
from segmv3.models.mobilenetv3 import exact_widths
from segmv3.models.zoo import NETS, create_classifier, create_model
from segmv3.weights.opening import open_net

_NET = NETS["lraspp_small_d8"]
_FULL = exact_widths(_NET.backbone)


@pytest.fixture
def weights(folder: Path, tmp_path: Path) -> Path:
    """A net of the folder's classes that was never trained."""
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    classes = open_dataset(Data(dataset="folder", root=folder), "train").classes
    checkpoint.save(create_model(_NET, 4), path, classes=classes, origin={"licence": "MIT"})
    return path


def cost(name: str, at: tuple[int, ...]) -> float:
    """What a part would cost on a machine that multiplies only: linear in each width."""
    total = 0.01
    for width in at:
        total *= width / 8
    return total


@cache
def _meter() -> Meter:
    return Meter(create_model(_NET, 4), (64, 96), "torch", 1, 0.25)


def known() -> Table:
    """A table of a machine on which `cost` is true."""
    meter = _meter()
    levels = {name: [meter._levels(place, len(own)) for place in own] for name, own in meter.parts.items()}
    table = Table(meter.groups, meter.parts, levels)
    table.times = {key_of(n, at): cost(n, at) for n in meter.parts for at in product(*levels[n])}
    table.checks = [(1.0, 1.0)]
    return table


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nothing is measured: latencies are those of `cost`. How many tables were asked for."""
    asked: list[int] = []

    def table(self: Meter, progress: Any, *, ready: Any) -> Table:
        asked.append(1)
        return known()

    monkeypatch.setattr(Meter, "table", table)
    monkeypatch.setattr(Meter, "compare", lambda self, models: [(2.0, 2.0, 5.0), (1.0, 1.0, 1.0)])
    return asked


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training is left out: nets stay as they were cut, and score by how many weights they have."""
    configs: list[Any] = []

    def train(config: Any, place: Path, **_: Any) -> Any:
        configs.append(config)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(config.model.pretrained, place / "best.safetensors")
        return SimpleNamespace(weights=place / "best.safetensors", score=size_of(config.model))

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run._Work, "_score", lambda self, model: size_of(model.config))
    return configs


def size_of(net: Any) -> float:
    return sum(exact_widths(net.backbone)) / 100


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole nets are run, but a busy machine does not decide about the test: time is the number of channels."""
    real = Meter.compare

    def compare(self: Meter, models: Any) -> Any:
        assert all(min(each) > 0 for each in real(self, models))
        return [(size_of(model.config),) for model in models]

    monkeypatch.setattr(Meter, "compare", compare)
    monkeypatch.setattr(Meter, "_part", lambda self, name, at: sum(at) / 100)


def between(meter: Meter) -> float:
    """A budget halfway between the widest and the narrowest net, where `steady` holds."""
    return (sum(meter.full) + sum(meter.least())) / 200


def settings(**changes: Any) -> Fitting:
    usual = {"size": (64, 96), "runtime": "torch", "step_share": 0.15, "shortlist": 2}
    return Fitting(**{"budget_ms": 0.75 * known().predict(_FULL)} | usual | changes)


# --- cutting ---


def test_groups_are_what_shortcuts_join():
    groups = {group.name: group.places for group in groups_of(_NET.backbone)}
    assert groups["stem"] == (0, 1)  # the first block has no expansion
    assert groups["output of blocks 4-6"] == (8, 10, 12)
    assert groups["expansion of block 4"] == (7,)
    assert groups["closing convolution"] == (23,)
    assert sorted(place for places in groups.values() for place in places) == list(range(24))


def test_the_channels_with_the_largest_filters_stay():
    """A net whose weak channels are zero computes the same without them."""
    torch.manual_seed(0)
    model = create_model(_NET, 4).eval()
    state = model.state_dict()
    weak = torch.arange(0, 96, 3)  # of the expansion of block 4, as numbers
    for name in ("expand.0", "depthwise.0"):
        state[f"backbone.blocks.3.{name}.weight"][weak] *= 1e-9
    squeezed = state["backbone.blocks.3.squeeze.reduce.weight"]
    squeezed[16:] = 0  # the eight of 24 that go
    state["backbone.blocks.3.squeeze.reduce.bias"][16:] = 0
    widths = tuple(64 if place == 7 else width for place, width in enumerate(_FULL))
    narrow = cut(model, widths)
    kept = [channel for channel in range(96) if channel % 3]
    own = narrow.state_dict()
    assert own["backbone.blocks.3.expand.0.weight"].equal(state["backbone.blocks.3.expand.0.weight"][kept])
    assert own["backbone.blocks.3.project.0.weight"].equal(state["backbone.blocks.3.project.0.weight"][:, kept])
    image = torch.rand(1, 3, 32, 48) * 255
    torch.testing.assert_close(narrow(image), model(image))
    assert narrow.config.backbone.widths == widths and narrow.config.head == model.config.head


@pytest.mark.parametrize("name", ["lraspp_small_d8_mmseg", "lraspp_small_plus"])
def test_every_head_can_be_narrowed_to_the_least(name):
    model = create_model(NETS[name], 4)
    meter = Meter(model, (64, 96), "torch", 1, 0.25)
    narrow = cut(model, meter.least())
    assert exact_widths(narrow.config.backbone) == meter.least()
    assert narrow(torch.zeros(1, 3, 64, 96)).shape == (1, 4, 64, 96)


def test_classifiers_are_narrowed_too():
    model = create_classifier(Classifier(backbone=MobileNetV3(size="small")), 3)
    meter = Meter(model, (32, 32), "torch", 1, 0.5)
    narrow = cut(model, meter.least())
    assert narrow.hidden.weight.shape == (1024, meter.least()[-1])
    assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


# --- the table ---


def test_the_table_is_exact_where_the_cost_is_linear_in_each_width():
    table = known()
    widths = _FULL
    for group in table.groups:
        if choices := group.choices(_FULL, 0.25):
            widths = group.narrowed(widths, choices[len(choices) // 3])
    sizes = [[table.groups[place].width(widths) for place in own] for own in table.parts.values()]
    assert table.predict(widths) == pytest.approx(sum(cost("", tuple(each)) for each in sizes))
    table.offset, table.factor = 3.0, 0.5
    assert table.predict(widths) == pytest.approx(3 + 0.5 * table.summed(widths))


@pytest.mark.parametrize(
    "runtime", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "onnxruntime"))]
)
def test_parts_are_measured_in_the_runtime(runtime):
    """Each part has the inputs of its place in the net, and gives what the net gives there."""
    pytest.importorskip(runtime)
    meter = Meter(create_model(_NET, 4), (64, 96), runtime, 1, 0.25)
    assert list(meter.parts)[:2] == ["stem", "block 1"] and list(meter.parts)[-2:] == ["closing", "head"]
    for name in ("stem", "block 3", "closing", "head"):
        full = [meter.groups[place].width(meter.full) for place in meter.parts[name]]
        assert meter._part(name, full) > 0
    part, shapes = latency._part_of(meter.net, 4, "head", (64, 96))
    assert [list(shape) for shape in shapes] == [[1, 88, 8, 12], [1, 288, 4, 6]]
    assert part(*map(torch.zeros, shapes)).shape == (1, 4, 8, 12)


def test_a_table_is_measured_once(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(Meter, "_part", lambda self, name, at: calls.append(name) or cost(name, at))
    monkeypatch.setattr(Meter, "compare", lambda self, models: [(10 * size_of(m.config),) for m in models])
    ready: list[int] = []
    tables = []
    for size in ((64, 96), (64, 96), (32, 96)):
        meter = Meter(create_model(_NET, 4), size, "torch", 1, 0.25)
        tables.append(meter.table(lambda *_: None, ready=lambda: ready.append(1)))
    assert len(ready) == 2 and len(calls) == 2 * len(tables[0].times)
    assert tables[0].times == tables[1].times and len(tables[0].checks) == 4
    assert tables[0].factor != 1 and tables[0].error > 0


# --- proposals ---


def test_each_group_proposes_the_widest_net_that_saves_enough():
    table = known()
    saving = 0.02 * table.predict(_FULL)
    found = {group.name: net for group, net in propose(table, _FULL, _FULL, 0.25, saving)}
    assert found
    for group in table.groups:
        saved = {w: table.predict(_FULL) - table.predict(group.narrowed(_FULL, w)) for w in group.choices(_FULL, 0.25)}
        enough = [width for width, each in saved.items() if each >= saving]
        assert (group.name in found) == bool(enough)
        if enough:
            assert found[group.name] == group.narrowed(_FULL, max(enough))


def test_steps_go_to_the_budget_and_take_the_best_ratio(weights, config, tmp_path, measured, trained):
    lines: list[str] = []
    out = tmp_path / "fitted.safetensors"
    fitted = fit(config, weights, out, settings(), run=tmp_path / "run", threads=1, say=lines.append)
    table = known()
    assert table.predict(fitted.widths) <= settings().budget_ms < fitted.steps[-1]["latency_before_ms"]
    for step in fitted.steps:
        now, score = step["latency_before_ms"], step["score_before"]
        tried = [each for each in step["proposals"] if each["score"] is not None]
        assert len(tried) == 2
        best = max(tried, key=lambda each: (each["score"] - score) / (now - each["latency_ms"]))
        assert step["group"] == best["group"] and step["latency_ms"] == best["latency_ms"]
    net, card = checkpoint.load(out)
    assert net.config.backbone.widths == fitted.widths == tuple(fitted.steps[-1]["widths"])
    assert card.facts["fitted_from"]["file"] == "net.safetensors"
    assert card.facts["fitted_from"]["origin"] == {"licence": "MIT"}
    assert card.facts["fit"]["latency_ms"] == fitted.latency == 1.0 and fitted.latency_before == 2.0
    assert trained[-1].schedule.steps == config.schedule.steps and trained[0].schedule.steps == 100
    assert trained[0].optim.lr == pytest.approx(0.3 * config.optim.lr)
    assert "step 1: " in lines[1] and "off by at most 0.0 %" in lines[0]
    page = fitted.page.read_text()
    assert "Score against latency" in page and fitted.steps[0]["group"] in page
    assert not list((tmp_path / "run").glob("step-*/0*"))


@pytest.mark.parametrize("kills", [(3, 2), *(pytest.param(kills, marks=pytest.mark.slow) for kills in ((1,), (4, 0)))])
def test_a_killed_fit_goes_on_where_it_stopped(kills, weights, config, tmp_path, measured, trained, monkeypatch):
    whole = fit(config, weights, tmp_path / "a.safetensors", settings(), run=tmp_path / "a")
    real, count = run.train, len(trained)
    for calls in kills:
        left = [calls]

        def train(*arguments: Any, left: list[int] = left, **options: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*arguments, **options)

        monkeypatch.setattr(run, "train", train)
        with pytest.raises(KeyboardInterrupt):
            fit(config, weights, tmp_path / "b.safetensors", settings(), run=tmp_path / "b")
    monkeypatch.setattr(run, "train", real)
    again = fit(config, weights, tmp_path / "b.safetensors", settings(), run=tmp_path / "b")
    assert again.steps == whole.steps and again.widths == whole.widths
    assert checkpoint.read(again.weights).tensors.keys() == checkpoint.read(whole.weights).tensors.keys()
    assert len(measured) == 2  # the table of the folder is used
    assert len(trained) - count >= count  # a proposal that was trained is asked for again: its run says it is finished


# --- what is refused ---


def test_budgets_that_no_net_meets_or_every_net_meets(weights, config, tmp_path, measured, trained):
    most = known().predict(_FULL)
    cases = {0.01 * most: r"the least possible is \d+\.\d\d ms", most: "there is nothing to cut"}
    for budget, says in cases.items():
        with pytest.raises(ConfigError, match=says):
            fit(config, weights, tmp_path / "x.safetensors", settings(budget_ms=budget), run=tmp_path / "x")
    assert not (tmp_path / "x").exists() and not trained


def test_other_settings_and_other_folders(weights, config, tmp_path, measured, trained):
    fit(config, weights, tmp_path / "a.safetensors", settings(), run=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"short_steps 100 -> 50. Use another --run"):
        fit(config, weights, tmp_path / "a.safetensors", settings(short_steps=50), run=tmp_path / "a")
    taught = replace(config, distill=replace(config.distill, teacher=str(weights)))
    with pytest.raises(ConfigError, match=r"config.distill.teacher .* Use another --run"):
        fit(taught, weights, tmp_path / "a.safetensors", settings(), run=tmp_path / "a")
    with pytest.raises(OutputError, match="is not empty and holds no fit"):
        fit(config, weights, tmp_path / "a.safetensors", settings(), run=config.data.root)


def test_the_result_may_lie_in_a_folder_of_the_work(weights, config, tmp_path, measured, trained):
    found = fit(config, weights, tmp_path / "a" / "nets" / "a.safetensors", settings(), run=tmp_path / "a")
    assert found.weights.is_file()


def test_weights_that_cannot_be_fitted(weights, config, tmp_path):
    other = tmp_path / "classifier.safetensors"
    checkpoint.save(create_classifier(Classifier(backbone=MobileNetV3(size="small")), 4), other)
    with pytest.raises(CheckpointError, match="is a classifier, the config trains a segmentation net"):
        fit(config, other, tmp_path / "x.safetensors", settings(), run=tmp_path / "x")
    sqlai = tmp_path / "sqlai.safetensors"
    net = Model(backbone=MobileNetV3(size="small", family="sqlai"))
    checkpoint.save(create_model(net, 4), sqlai)
    with pytest.raises(ModelError, match="the family sqlai has no other widths"):
        fit(config, sqlai, tmp_path / "x.safetensors", settings(), run=tmp_path / "x")
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"net.onnx is an exported file; name the weights"):
        fit(config, tmp_path / "net.onnx", tmp_path / "x.safetensors", settings(), run=tmp_path / "x")
    fewer = tmp_path / "fewer.safetensors"
    checkpoint.save(create_model(_NET, 3), fewer)
    with pytest.raises(CheckpointError, match="3 classes stored, 4 requested"):
        fit(config, fewer, tmp_path / "x.safetensors", settings(), run=tmp_path / "x")


def test_a_runtime_that_is_missing_and_a_machine_that_is_busy(weights, config, tmp_path, monkeypatch):
    monkeypatch.setattr("segmv3.runtime.loading.find_spec", lambda package: None)
    with pytest.raises(ModelError, match=r'openvino backend needs openvino; pip install "segmv3\[export\]"'):
        fit(config, weights, tmp_path / "x.safetensors", settings(runtime="openvino"), run=tmp_path / "x")
    monkeypatch.setattr("segmv3.benchmark.timing.Others.cores", lambda self: 99.5)
    with pytest.raises(BusyError, match="other programs use 99.5 of"):
        fit(config, weights, tmp_path / "x.safetensors", settings(), run=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_command_refuses_in_one_line(weights, config, tmp_path, capsys):
    arguments = ["fit", "quickstart", "--weights", str(weights), "--budget-ms", "3"]
    assert cli.main([*arguments, "-o", str(weights)]) == 2
    assert cli.main([*arguments, "-o", str(weights), "--overwrite"]) == 2
    assert cli.main([*arguments, "-o", str(tmp_path / "x.safetensors"), "--step-share", "2"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 1)[1] for line in said] == [
        f"{weights} exists; choose another --output or add --overwrite",
        f"{weights} is the net itself; choose another --output",
        "--step-share: must be above 0 and below 1",
    ]


# --- all of it ---


@pytest.mark.slow
def test_a_segmentation_net_is_fitted_whole(weights, config, tmp_path, steady):
    pytest.importorskip("openvino")
    tiny = replace(config, schedule=Schedule(steps=2, eval_every=2))
    budget = between(_meter())
    how = Fitting(budget_ms=budget, size=(64, 96), short_steps=1, shortlist=1, step_share=0.1, force=True)
    fitted = fit(tiny, weights, tmp_path / "out.safetensors", how, run=tmp_path / "run", threads=1)
    assert fitted.widths != _FULL and fitted.steps and fitted.latency > 0
    assert open_net(fitted.weights)[0].config.backbone.widths == fitted.widths
    assert json.loads((tmp_path / "run" / "result.json").read_text())["weights"] == fitted.weights.name
    again = fit(tiny, weights, tmp_path / "out.safetensors", how, run=tmp_path / "run", threads=1)
    assert again.widths == fitted.widths and again.score == fitted.score


@pytest.mark.slow
def test_a_classifier_is_fitted_whole(tmp_path, steady):
    for split, name, number in product(("train", "val"), ("a", "b"), range(4)):
        file = tmp_path / "data" / split / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(file, torch.full((40, 40, 3), 200 * (name == "b") + number, dtype=torch.uint8).numpy())
    net = Classifier(backbone=MobileNetV3(size="small", width=0.5))
    config = Classification(
        model=net,
        data=ImageFolder(root=tmp_path / "data", batch_size=4, crop_size=(32, 32), workers=0),
        schedule=Schedule(steps=2, eval_every=2),
    )
    path = tmp_path / "net.safetensors"
    checkpoint.save(create_classifier(net, 2), path, classes=("a", "b"))
    how = Fitting(
        budget_ms=between(Meter(create_classifier(net, 2), (32, 32), "torch", 1, 0.25)),
        **{"runtime": "torch", "short_steps": 1, "shortlist": 1, "step_share": 0.1, "force": True},
    )
    fitted = fit(config, path, tmp_path / "out.safetensors", how, run=tmp_path / "run", threads=1)
    assert open_net(fitted.weights)[0].config == with_widths(net, fitted.widths)
    assert isinstance(config, Classification) and not isinstance(config, Config)

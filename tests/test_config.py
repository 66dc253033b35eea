import json
from dataclasses import replace
from pathlib import Path

import pytest

from segmv3.config import SGD, AdamW, Classification, Config, Data, Loss, load_config, to_dict
from segmv3.errors import ConfigError
from segmv3.models.zoo import NETS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
IMAGENET = sorted((Path(__file__).parents[1] / "configs" / "imagenet").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS + IMAGENET, ids=lambda p: p.stem)
def test_every_config_loads_and_becomes_json(path):
    config = load_config(path, kind=Classification if path in IMAGENET else Config)
    assert path in IMAGENET or replace(config.model, pretrained=None) in NETS.values()
    assert json.loads(json.dumps(to_dict(config)))["schedule"]["steps"] == config.schedule.steps
    assert path.read_text().startswith('"""'), "a config says how to run it and what it costs"


def test_the_cityscapes_recipe_is_the_published_one():
    """REFERENCE: SGD 0.01, momentum 0.9, decay 5e-4, poly 0.9 to 1e-4, 512x1024, batch 16, 320k meant and executed."""
    for name in ("lraspp_large_d8", "lraspp_small_d8"):
        config = load_config(CONFIGS[0].parent / f"{name}.py")
        assert config.optim == SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)
        assert (config.schedule.steps, config.schedule.policy, config.schedule.power) == (320_000, "poly", 0.9)
        assert config.schedule.min_lr == 1e-4
        data = config.data
        assert (data.batch_size, data.crop_size, data.scale_range) == (16, (512, 1024), (0.5, 2.0))
        assert data.cat_max_ratio == 0.75 and config.model == NETS[name]


def test_flags_override_the_file():
    path = CONFIGS[0].parent / "lraspp_small_d8_camvid.py"
    flags = ["--optim.lr", "0.02", "--data.crop-size", "96", "128", "--data.root", "elsewhere", "--seed", "5"]
    config = load_config(path, flags)
    assert isinstance(config.optim, AdamW) and config.optim.lr == 0.02
    assert config.data.crop_size == (96, 128) and config.data.root == Path("elsewhere") and config.seed == 5
    assert load_config(str(path)).optim.lr != 0.02
    loss = ["--loss.ohem", "0.7", "--loss.min-kept", "0.0625", "--loss.class-weights", "1", "2.5"]
    assert load_config(path, loss).loss == Loss(ohem=0.7, min_kept=0.0625, class_weights=(1.0, 2.5))
    assert load_config(path, ["--loss.class-weights", "balanced"]).loss == Loss(class_weights="balanced")
    assert load_config(path).loss == Loss()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--optim.lrr", "1"], "--optim.lr"),
        (["--schedule.steps", "many"], "--schedule.steps"),
        (["--model.backbone.size", "huge"], "large"),
    ],
)
def test_unknown_or_ill_typed_flags_stop_with_a_hint(flags, says, capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(CONFIGS[0], flags)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--schedule.steps", "0"], "schedule.steps: must be at least 1"),
        (["--data.scale-range", "2", "1"], "data.scale-range"),
        (["--data.flip", "2"], "probability"),
        (["--optim.lr", "1e-9"], "schedule.min-lr"),
        (["--data.batch-size", "-1"], "data.batch-size"),
        (["--schedule.warmup-steps", "-1"], "schedule.warmup-steps"),
        (["--loss.ohem", "0"], "loss.ohem: is a probability above 0"),
        (["--loss.ohem", "1.1"], "loss.ohem"),
        (["--loss.ohem", "nan"], "loss.ohem"),
        (["--loss.ohem", "0.7", "--loss.min-kept", "100000"], "loss.min-kept: is a share"),
        (["--loss.min-kept", "0.1"], "loss.min-kept: needs loss.ohem"),
        (["--loss.label-smoothing", "1"], "loss.label-smoothing"),
        (["--loss.class-weights", "1", "-1"], "loss.class-weights"),
        (["--loss.class-weights", "0", "0"], "loss.class-weights"),
        (["--loss.class-weights", "1", "inf"], "loss.class-weights"),
    ],
)
def test_impossible_values_are_refused(flags, says):
    with pytest.raises(ConfigError, match=says):
        load_config(CONFIGS[0], flags)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config = 3", "must set `config = Config"),
        ("1 / 0", "ZeroDivisionError"),
        ("from segmv3.config import *\nSGD(learning_rate=1)", "learning_rate"),
        ("def", "SyntaxError"),
    ],
)
def test_broken_config_files_are_one_line(tmp_path, text, says):
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        load_config(path)
    assert "\n" not in str(error.value) and "c.py" in str(error.value)


def test_a_missing_config_names_its_neighbours():
    with pytest.raises(ConfigError, match=r"large\.py does not exist; .* has .*lraspp_large_d8"):
        load_config(CONFIGS[0].parent / "large.py")


def test_a_config_cannot_be_changed(tmp_path):
    config = load_config(CONFIGS[0])
    assert isinstance(config, Config) and isinstance(config.data, Data)
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]

"""Configs by name, and copies of them to edit."""

import subprocess
import sys

import pytest

from segmv3.cli import main
from segmv3.config import Config, Detection, config_names, find_config, load_config, standalone
from segmv3.errors import ConfigError
from segmv3.training.experiment import Experiment


@pytest.mark.parametrize("name", config_names())
def test_a_copy_is_the_same_experiment(name, tmp_path):
    config = load_config(name, kind=Experiment)
    copy = tmp_path / "copy.py"
    copy.write_text(standalone(config, name))
    assert load_config(copy, kind=Experiment) == config


def test_names_work_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("lraspp_small_d8_camvid") == load_config(find_config("configs/lraspp_small_d8_camvid.py"))
    (tmp_path / "lraspp_small_d8_camvid").write_text("x = 1")  # a file of one's own counts first
    with pytest.raises(ConfigError, match="must set `config = Config"):
        load_config("lraspp_small_d8_camvid")


def test_a_wrong_name_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"lraspp_smal_d8 does not exist; did you mean lraspp_small_d8"):
        load_config("lraspp_smal_d8")


def test_the_command_lists_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config"]) == 0
    assert "recipes/camvid_best" in capsys.readouterr().out
    assert main(["config", "quickstart", "-o", "my.py"]) == 0
    assert "wrote my.py; segmv3 train my.py trains it" in capsys.readouterr().out
    assert isinstance(load_config("my.py"), Config)
    assert main(["config", "detect/quickstart_areas", "-o", "boxes.py"]) == 0
    assert "wrote boxes.py; segmv3 detect train boxes.py trains it" in capsys.readouterr().out
    assert load_config("boxes.py", kind=Detection) == load_config("detect/quickstart_areas", kind=Detection)
    assert main(["config", "quickstart", "-o", "my.py"]) == 2
    assert "my.py exists" in capsys.readouterr().err


def test_a_part_of_ones_own_is_imported_from_its_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom segmv3.config import LRASPP\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(LRASPP):\n    more: int = 1\n"
    )
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\nfrom mine import Mine\nfrom segmv3.config import load_config\n"
        "base = load_config('quickstart')\nconfig = replace(base, model=replace(base.model, head=Mine(more=2)))\n"
    )
    code = "from segmv3.config import standalone\nfrom segmv3.config import load_config\n"
    code += "open('copy.py', 'w').write(standalone(load_config('own.py'), 'own'))\n"
    code += "assert load_config('copy.py').model.head.more == 2\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

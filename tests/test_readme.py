"""The README: its commands run as they are written, what it names exists."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import segmv3
from segmv3 import cli
from segmv3.cli import main
from segmv3.models.zoo import create_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_it_is_short():
    assert README.count("\n") <= 130


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)", README)
    assert len(links) > 20
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_its_make_targets_exist():
    named = set(re.findall(r"^make ([a-z0-9-]+)", README, re.MULTILINE))
    assert {"quickstart", "test", "check", "docs"} <= named
    assert named <= set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """What a fresh clone is after `make quickstart`, but for the training."""
    for name in ("docs", "configs", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "mini-city", "data/mini-city", "--train", "1", "--val", "2", "--size", "64", "128"]) == 0
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    segmv3.save(create_model("lraspp_small_d8"), tmp_path / "runs/quickstart/best.safetensors")
    return tmp_path


@pytest.mark.slow
def test_its_commands_run_as_written(clone):
    lines = [line for kind, block in BLOCKS for line in block.splitlines() if kind == "sh" and "/segmv3 " in line]
    assert len(lines) >= 2
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program == ".venv/bin/segmv3"
        assert main(arguments) == 0, line
    assert list((clone / "out").rglob("*.png")) and list((clone / "out").rglob("*.html"))


@pytest.mark.slow
def test_its_python_runs_as_written(clone):
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    names: dict[str, object] = {}
    exec(code, names)
    assert names["labels"].shape == names["image"].shape[:2]


def test_the_site_has_every_command_and_every_setting(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    import build_docs

    usage = re.findall(r"^  ([a-z][a-z-]*(?: [a-z][a-z-]*)?)(?= [A-Z[]|  )", cli._USAGE, re.MULTILINE)
    assert len(usage) > 30
    shown = {command.strip() for command in build_docs.COMMANDS.replace("\n", " ").split(",")}
    assert {name for name in usage if not name.startswith("benchmark")} <= shown
    settings = "\n".join(build_docs.settings_page())
    for kind in ("Config", "Classification", "Detection", "BoxData", "ImageFolder"):
        assert f"\n## {kind}\n" in settings

"""Odd arguments: every command answers in one line, with exit code 2, or does what was asked."""

import io
import json
import os
from pathlib import Path

import pytest
from conftest import paint

import segmv3
from segmv3.cli import main
from segmv3.files import cache_folder
from segmv3.images import write_png
from segmv3.labels import read_classes
from segmv3.models.zoo import create_model

COMMANDS = """
train V
train CONFIG --run V --data.root nothing
train CONFIG --run r --data.root V
train CONFIG --run r --data.cache V
train CONFIG --run r --model.pretrained V
train CONFIG --run r --distill.teacher V
train CONFIG --run r --data.extra-images V --data.extra-labels V
sweep CONFIG V --output s
sweep CONFIG SPACE --output V --data.root nothing
evaluate V --weights WEIGHTS
evaluate CONFIG --weights V
evaluate CONFIG --weights WEIGHTS --data.root V
evaluate CONFIG --weights WEIGHTS --split V
evaluate CONFIG --weights WEIGHTS --output V --calibration
evaluate CONFIG --weights WEIGHTS --report V
compare V V
compare CONFIG V --output V
submit CONFIG --data.dataset cityscapes --data.root V --check V
predict V --weights WEIGHTS --output o --backend torch
predict IMAGE --weights V --output o --backend torch
predict IMAGE --weights WEIGHTS --output V --backend torch
predict IMAGE --weights WEIGHTS --output o --backend torch --save V
classify train V
classify evaluate V --weights WEIGHTS
classify evaluate --weights V --data.root DATA
classify predict V --weights WEIGHTS
weights import V
weights import WEIGHTS -o V
weights import WEIGHTS --into V
weights average WEIGHTS V -o V
weights push WEIGHTS V --dry-run
export V --to onnx
export WEIGHTS --to onnx --images V -o V
data mini-city V --train 1 --val 1 --size 64 128
data check V
data check DATA --output V
data pack V c
data pack DATA V
data pack DATA c --split V
data next V --weights WEIGHTS -o n
data next IMAGE --weights V -o n
data next IMAGE --weights WEIGHTS -o V
data next IMAGE --weights WEIGHTS -o n --labelled V
data suspects V --weights WEIGHTS -o n
data suspects DATA --weights V -o n
data suspects DATA --weights WEIGHTS -o V
data suspects DATA --weights WEIGHTS -o n --split V
benchmark table --results V
benchmark metrics --data.root V
benchmark latency --output V
benchmark training --output V
V V
""".strip().split("\n")

ODD = (
    "x" * 5000,
    "y" * 300 + ".json",
    "~nosuchuser/x",
    "[/red]\x1b[31m\n:smile:",
    "stra\udcdfe",
    "a file/inside",
    "a file",
    "[" * 1000,
    "-",
)

NUMBERS = """
evaluate CONFIG --weights WEIGHTS --limit V
evaluate CONFIG --weights WEIGHTS --threads V
evaluate CONFIG --weights WEIGHTS --sliding-window V V
evaluate CONFIG --weights WEIGHTS --sliding-window 32 32 --stride V V
compare a b --resamples V
compare a b --seed V
classify predict IMAGE --weights WEIGHTS --top V
weights import WEIGHTS --into lraspp_small_d8 -o n --num-classes V
export WEIGHTS --to onnx -o x.txt --size V V
data mini-city m --val 1 --size 64 128 --train V
data mini-city m --train 1 --val 1 --size V V
data next IMAGE --weights WEIGHTS -o n --overwrite --count V
data next IMAGE --weights WEIGHTS -o n --overwrite --candidates V
data next IMAGE --weights WEIGHTS -o n --overwrite --worst V
data next IMAGE --weights WEIGHTS -o n --overwrite --every V
data next IMAGE --weights WEIGHTS -o n --overwrite --size V V
data suspects DATA --weights WEIGHTS -o s --overwrite --count V
train CONFIG --run r --threads V --data.root nothing
train CONFIG --run r --data.crop-size V V --data.root nothing
train CONFIG --run r --optim.lr V --data.root nothing
train CONFIG --run r --schedule.steps V --data.root nothing
sweep CONFIG SPACE --output s --data.root nothing --trials V
sweep CONFIG SPACE --output s --data.root nothing --hours V
""".strip().split("\n")


@pytest.fixture(autouse=True)
def _nothing_is_piped_in(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO())))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one image in each split, weights, a config and a space; the current one."""
    root = tmp_path_factory.mktemp("odd")
    for split in ("train", "val"):
        for kind, pixels in zip(("images", "labels"), paint(0, (48, 64), 4), strict=True):
            (root / "DATA" / split / kind).mkdir(parents=True)
            write_png(root / "DATA" / split / kind / "a.png", pixels)
    classes = [{"id": i, "name": name} for i, name in enumerate(("road", "house", "tree", "sky"))]
    (root / "DATA/classes.json").write_text(json.dumps({"classes": classes}))
    segmv3.save(create_model("lraspp_small_d8", 4), root / "WEIGHTS", classes=read_classes(root / "DATA")[0])
    (root / "CONFIG").write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        "config = Config(model=NETS['lraspp_small_d8'], data=Data(dataset='folder', root=Path('DATA'), "
        "batch_size=1, crop_size=(32, 48), workers=0), schedule=Schedule(steps=2))\n"
    )
    (root / "SPACE").write_text('["optim.lr"]\nlow = 1e-4\nhigh = 1e-2\n')
    (root / "a file").write_text("{}")
    write_png(root / "IMAGE.png", paint(1, (48, 64), 4)[0])
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def answers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command ends well, or with one line; never with an exception."""
    code = main(arguments)
    line = capsys.readouterr().err
    assert code == 0 or (code == 2 and line.count("\n") == 1 and line[:-1].isprintable() and ": " in line), line


def filled(command: str, value: str) -> list[str]:
    return [{"V": value, "IMAGE": "IMAGE.png"}.get(word, word) for word in command.split()]


@pytest.mark.filterwarnings("ignore::segmv3.errors.Segmv3Warning")
@pytest.mark.parametrize("values", [ODD[:4], pytest.param(ODD[4:], marks=pytest.mark.slow)], ids=["few", "more"])
@pytest.mark.parametrize("command", COMMANDS)
def test_odd_paths_and_names(command, values, place, capsys):
    for value in values:
        answers(filled(command, value), capsys)


@pytest.mark.parametrize("command", NUMBERS)
def test_odd_numbers(command, place, capsys):
    for value in ("-1", "4000000000", "9" * 40, "nan"):
        answers(filled(command, value), capsys)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", ""], "config: the argument after train is empty; was a variable of the shell not set?"),
        ([""], "config: the argument is empty; was a variable of the shell not set?"),
        (["train", "a\0b"], "config: a\\x00b holds characters that no file name can have"),
        (["predict", "a\ud800"], "config: a\\ud800 holds characters that no file name can have"),
        (["train", "x" * 300], f"files: {'x' * 199}… cannot be used (File name too long)"),
        (["compare", "a", "b", "--seed", "9" * 30], "config: --seed is not finite, or too large a number"),
    ],
)
def test_what_no_command_can_use_is_said_once_for_all(arguments, line, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_disk_that_fails_is_no_mistake_of_the_user(monkeypatch, capsys):
    def full(_: list[str]) -> None:
        raise OSError(28, "No space left on device", "/t/x")

    monkeypatch.setattr("segmv3.cli._run", full)
    assert main(["models"]) == 4
    assert capsys.readouterr().err == "files: /t/x cannot be used (No space left on device)\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"x" * 5000, f"LIST.txt line 2: {'x' * 199}… does not exist in "),
        (b"a\0b", "LIST.txt line 2: a\\x00b does not exist in "),
        (b"~nosuchuser/x.png", "LIST.txt line 2: ~nosuchuser/x.png does not exist in "),
        (b"[/red]\x1b[31m", "LIST.txt line 2: [/red]\\x1b[31m does not exist in "),
        (b"\xdf\xfe", "LIST.txt line 2: \\udcdf\\udcfe does not exist in "),
    ],
)
def test_odd_lines_of_a_list(line, says, place, capsys):
    Path("LIST.txt").write_bytes(b"IMAGE.png\n" + line + b"\n")
    command = ["predict", "LIST.txt", "--weights", "WEIGHTS", "--output", "lists", "--backend", "torch"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_cache_of_an_unknown_user_is_a_folder_like_any_other(monkeypatch):
    monkeypatch.setenv("SEGMV3_CACHE", "~nosuchuser/cache")
    assert cache_folder() == Path("~nosuchuser/cache")

"""The command line as a person uses it: exit codes, one-line errors, files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tyro
from PIL import Image

import segmv3
from segmv3 import cli
from segmv3.cli import main
from segmv3.commands.options import _reason
from segmv3.images import read_ids, write_png
from segmv3.models.zoo import create_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config_file(folder, tmp_path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        f"config = Config(model=NETS['lraspp_small_d8'], data=Data(dataset='folder', root=Path({str(folder)!r}), "
        "batch_size=2, crop_size=(32, 48), workers=0), optim=AdamW(lr=1e-3), "
        "schedule=Schedule(steps=2, min_lr=0, eval_every=2, log_every=1))\n"
    )
    return file


@pytest.fixture
def weights(tmp_path) -> Path:
    from segmv3.labels import read_classes

    path = tmp_path / "w.safetensors"
    classes, _ = read_classes(tmp_path / "data") if (tmp_path / "data").is_dir() else (None, None)
    segmv3.save(create_model("lraspp_small_d8", len(classes) if classes else 19), path, classes=classes)
    return path


@pytest.fixture
def predict(weights, folder, tmp_path) -> tuple[object, ...]:
    """`segmv3 predict` of the pictures of val, by torch."""
    source, output = folder / "val" / "images", tmp_path / "out"
    return ("predict", source, "--backend", "torch", "--weights", weights, "--output", output)


def fails(capsys, *arguments: object, code: int = 2) -> str:
    """The one line a failing command prints."""
    assert main([str(a) for a in arguments]) == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err.strip()


@pytest.mark.parametrize(("arguments", "says"), [(["--help"], "segmv3 COMMAND"), (["train", "--help"], "--optim.lr")])
def test_help_answers_at_once(arguments, says):
    command = [sys.executable, "-X", "importtime", "-m", "segmv3", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and says in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "segmv3.errors" in imported and not imported & {"torch", "numpy", "cv2", "albumentations"}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("adapt", "WEIGHTS, FRAMES, --output are missing; write segmv3 adapt WEIGHTS FRAMES -o PATH; "),
        ("adapt some.safetensors", "FRAMES, --output are missing; write segmv3 adapt WEIGHTS FRAMES -o PATH; "),
        ("finetune", "DATA is missing; write segmv3 finetune DATA; "),
        ("data import a", "OUTPUT is missing; write segmv3 data import SOURCE OUTPUT; "),
        ("data suspects a -o b", "--weights is missing; write segmv3 data suspects SOURCE --weights TEXT -o PATH; "),
        ("finetune a --minutez 3", "unrecognized options: --minutez, 3, did you mean --minutes FLOAT; "),
        ("finetune a --minutes b", "error parsing --minutes: could not convert string to float: 'b', write --minutes"),
        ("finetune a --from", "missing value for argument '--weights/--from'. Expected 1 values; segmv3 finetune"),
        ("predict a --video b", "invalid choice 'b' for argument '--video'. Expected one of ('webm', 'mp4', 'av1'); "),
        ("predict a --size 3", "error parsing --size: no type matching"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(command, says, capsys):
    assert fails(capsys, *command.split()).startswith(f"config: {says}")


def test_the_reason_is_found_in_a_coloured_frame():
    box = (
        "\x1b[31m╭─ \x1b[0mUnrecognized options\x1b[31m ─╮\n│\x1b[0m Unrecognized options: --lr   \x1b[31m│\x1b[0m\n"
        "│ ──────────────────────────── │\n│ Perhaps you meant:           │\n│     --optim.lr FLOAT         │\n"
        "│ ──────────────────────────── │\n│ For full helptext, run x -h  │\n╰──────────────────────────────╯\n"
    )
    assert _reason(box, "x", []) == "unrecognized options: --lr, did you mean --optim.lr FLOAT"


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "usage: segmv3" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"segmv3 {segmv3.__version__}\n"
    assert "there is no command 'trian'" in fails(capsys, "trian")
    assert "needs a config file first" in fails(capsys, "train")
    assert "there is segmv3 data mini-city DIR" in fails(capsys, "data", "metro")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "models"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: segmv3 {command}" in capsys.readouterr().out


HELP_ON_A_SCREEN = ["train", "sweep", "evaluate", "submit", "export", "classify train", "classify evaluate", "predict"]


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", HELP_ON_A_SCREEN)
def test_help_fits_on_a_screen_and_help_all_has_every_flag(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    short = help_of(capsys, *command.split(), "--help")
    whole = help_of(capsys, *command.split(), "--help-all")
    assert short.count("\n") <= 55 and "None}" not in short + whole
    named = set(re.findall(r"^  (?:-\w, )?(--[a-z.-]+)", whole, re.MULTILINE))
    assert set(re.findall(r"^  (?:-\w, )?(--[a-z.-]+)", short, re.MULTILINE)) <= named


def test_help_all_says_something_of_every_flag_that_tyro_parses():
    from segmv3.commands.help import COMMON, flags
    from segmv3.commands.options import config_file
    from segmv3.commands.train import Train

    config = config_file("train", ["--help"])[1]
    found = list(flags(Train, Train(config=config, run=Path("r"))))
    listed = [flag.option for flag in found]
    assert [flag.name for flag in found if not flag.text] == []
    with pytest.warns(DeprecationWarning):  # of the function, which is for programs that look at a parser
        parser = tyro.extras.get_parser(
            Train, default=Train(config=config, run=Path("r")), config=(tyro.conf.AvoidSubcommands,)
        )
    assert sorted(listed) == sorted(a.option_strings[0] for a in parser._actions if a.option_strings[0] != "-h")
    assert {f"--{name}" for name in COMMON["train"].split()} <= set(listed)


@pytest.mark.parametrize("command", ["train", "classify train", "evaluate", "submit"])
def test_every_flag_of_the_short_help_exists(command, capsys):
    from segmv3.commands.help import COMMON

    shown = help_of(capsys, *command.split(), "--help")
    for name in COMMON[command].split():
        assert re.search(rf"^  (-\w, )?--{re.escape(name)}\b", shown, re.MULTILINE), name


def test_help_names_what_must_be_given_and_a_switch_of_this_command(capsys):
    shown = help_of(capsys, "data", "next", "--help")
    assert shown.startswith("usage: segmv3 data next POOL --weights TEXT -o PATH [--FLAG VALUE ...]\n")
    assert "turned off" not in shown and shown.rstrip("\n") + "\n" == shown
    assert help_of(capsys, "predict", "--help").endswith("turned off by no-: --no-legend.\n")
    assert "by no-: --model.backbone.no-dilate-first." in help_of(capsys, "train", "--help-all")


@pytest.mark.parametrize("command", ["sweep", "evaluate", "submit", "compare", "data check"])
def test_output_has_the_short_name_everywhere(command, capsys):
    assert "  -o, --output PATH" in help_of(capsys, *command.split(), "--help-all")


def test_a_net_is_opened_without_triton():
    """Triton prints forty lines about leaks when Python ends."""
    code = "import sys, segmv3.weights.opening; print([name for name in sys.modules if name == 'triton'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_data_set_in_place_of_a_config_names_the_command_for_it(tmp_path, capsys):
    (tmp_path / "streets" / "images").mkdir(parents=True)
    said = fails(capsys, "train", tmp_path / "streets")
    assert "is a folder; segmv3 finetune " in said and said.endswith("makes a config for a data set")


def test_models_lists_the_exact_counts(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "1,507,198" in printed and "468,830" in printed


def test_train_evaluate_predict(config_file, folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(config_file), "--run", str(run), "--threads", "1", "--schedule.steps", "4"]) == 0
    best = run / "best.safetensors"
    out = tmp_path / "out.json"
    assert main(["evaluate", str(config_file), "--weights", str(best), "--output", str(out)]) == 0
    result, trained = json.loads(out.read_text()), json.loads((run / "metrics.json").read_text())
    assert result["confusion_matrix"] == trained["confusion_matrix"]  # the recorded score is the one that is measured
    assert len(result["weights_sha256"]) == 64
    flags = ["--multi-scale-flip", "--split", "train", "--limit", "2", "--output", str(out), "--overwrite"]
    assert main(["evaluate", str(config_file), "--weights", str(best), *flags]) == 0
    result = json.loads(out.read_text())
    assert (result["images"], result["flip"], len(result["scales"])) == (2, True, 6)
    assert "the first 2 of 6 images" in capsys.readouterr().out
    source, pictures = folder / "val" / "images", tmp_path / "pictures"
    flags = ["--weights", str(best), "--output", str(pictures), "--save", "labels,color", "--backend", "torch"]
    assert main(["predict", str(source), *flags]) == 0
    labels = read_ids(pictures / "scene_0_labels.png")
    image = segmv3.read_image(source / "scene_0.png")
    assert np.array_equal(labels, segmv3.load(best, backend="torch")(image)) and labels.shape == (48, 64)
    assert (pictures / "scene_0_color.png").is_file()


def test_the_tools_are_the_same_commands(tmp_path):
    for name in ("train", "evaluate", "predict"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / f"{name}.py"), "missing"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_bad_weights_are_one_line(config_file, weights, tmp_path, capsys):
    evaluate = ("evaluate", config_file, "--weights")
    assert "missing.safetensors does not exist" in fails(capsys, *evaluate, tmp_path / "missing.safetensors")
    segmv3.save(create_model("lraspp_small_d8", 7), tmp_path / "seven.safetensors")
    assert "7 classes stored, 4 requested" in fails(capsys, *evaluate, tmp_path / "seven.safetensors")
    says = fails(capsys, *evaluate, weights, "--model.backbone.size", "large")
    assert "another net: backbone.size 'small' (config: 'large')" in says
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    assert "cut.safetensors" in fails(capsys, *evaluate, tmp_path / "cut.safetensors")


def test_nothing_of_the_users_is_overwritten(config_file, weights, predict, tmp_path, capsys):
    notes = tmp_path / "notes.json"
    notes.write_text("mine")
    assert "notes.json exists" in fails(capsys, "evaluate", config_file, "--weights", weights, "--output", notes)
    assert "choose another --output" in fails(capsys, *predict[:-1], predict[1])
    assert main([str(a) for a in predict]) == 0
    capsys.readouterr()
    assert "add --overwrite" in fails(capsys, *predict)
    assert notes.read_text() == "mine"


def test_bad_settings_and_places_are_one_line(config_file, weights, predict, tmp_path, capsys):
    (tmp_path / "file").touch()
    train = ("train", config_file, "--run", tmp_path / "run")
    assert "does not exist" in fails(capsys, *train, "--data.root", tmp_path / "nowhere")
    assert "schedule.steps: must be at least 1" in fails(capsys, *train, "--schedule.steps", 0)
    assert "cannot be written" in fails(capsys, *train[:3], tmp_path / "file" / "run")
    assert "--threads is 0" in fails(capsys, *train, "--threads", 0)
    assert "found 0 images" in fails(capsys, "evaluate", config_file, "--weights", weights, "--split", "test")
    assert "--limit is 0" in fails(capsys, "evaluate", config_file, "--weights", weights, "--limit", 0)
    assert "choose from overlay, labels, color" in fails(capsys, *predict, "--save", "overlay,mask")
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["id", "rgb", "cut", "size", "label", "image"])
def test_bad_data_stops_before_training(kind, config_file, folder, tmp_path, capsys):
    label = folder / "train" / "labels" / "scene_2.png"
    ids = np.array(Image.open(label))
    if kind == "id":
        write_png(label, np.where(ids == 1, 77, ids).astype(np.uint8))
    elif kind == "rgb":
        write_png(label, np.stack([ids] * 3, axis=2))
    elif kind == "cut":
        label.write_bytes(label.read_bytes()[:-30])
    elif kind == "size":
        write_png(label, ids[:, :-2])
    elif kind == "label":
        label.unlink()
    else:
        (folder / "train" / "images" / "scene_2.png").unlink()
    expected = {
        "id": "has ids {77}",
        "rgb": "is a colour image",
        "cut": "is damaged",
        "size": "must have the same size",
        "label": "1 image has no label",
        "image": "1 label has no image",
    }[kind]
    says = fails(capsys, "train", config_file, "--run", tmp_path / "run")
    assert expected in says and "scene_2" in says
    assert not (tmp_path / "run" / "log.jsonl").exists() or not (tmp_path / "run" / "log.jsonl").read_text()


def test_a_cuda_device_that_is_not_there_is_named(predict, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda" in fails(capsys, *predict, "--device", "cuda", code=4)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals to lose")
@pytest.mark.parametrize(("before", "code"), [(signal.SIG_DFL, 129), (signal.SIG_IGN, 0)])
def test_a_lost_terminal_is_obeyed_and_nohup_respected(
    before: signal.Handlers, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda arguments: os.kill(os.getpid(), signal.SIGHUP))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, before)
    try:
        assert cli.main(["models"]) == code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == ("interrupted: what was finished is kept\n" if code else "")


@pytest.fixture
def handlers():
    """What `main` changes of this process."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before, hook = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    yield numbers
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_inside_c_code_ends_in_one_line(handlers, monkeypatch, capsys):
    for number in handlers:

        def drawing(_, number=number):
            try:
                signal.raise_signal(number)
            except BaseException:
                raise ValueError("object __array__ method not producing an array") from None  # as matplotlib does

        monkeypatch.setattr(cli, "_run", drawing)
        assert main(["models"]) == 128 + number
        assert capsys.readouterr().err == "interrupted: what was finished is kept\n"


def test_a_signal_that_python_drops_comes_again(handlers, monkeypatch, capsys):
    class Closing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def run(_):
        Closing()
        time.sleep(20)

    monkeypatch.setattr(cli, "_run", run)
    assert main(["models"]) == 143
    assert capsys.readouterr().err == "interrupted: what was finished is kept\n"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_the_interpreter_ends_leaves_no_traceback(name, code):
    script = (
        "import atexit, signal, sys\n"
        "from segmv3 import cli\n"
        "cli._run = lambda _: None\n"
        f"atexit.register(signal.raise_signal, signal.{name})\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "models"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback"),
        RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)"),
        cv2.error("OpenCV(5.0.0) alloc.cpp:52: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
        np._core._exceptions._ArrayMemoryError((1 << 50,), np.dtype("u1")),
    ],
)
def test_memory_that_ran_out_is_one_line(handlers, error, monkeypatch, capsys):
    def run(_):
        raise error

    monkeypatch.setattr(cli, "_run", run)
    assert main(["models"]) == 4
    assert capsys.readouterr().err == "environment: out of memory; use smaller images, crops or batches\n"


def test_a_fault_of_ours_is_not_hidden(handlers, monkeypatch):
    def run(_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "_run", run)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["models"])

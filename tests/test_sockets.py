"""Nothing of ours, and no package that we use, goes to the internet, unless the user asks for a download."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import segmv3
from segmv3.images import write_png
from segmv3.models.zoo import create_model

SEALED = Path(__file__).parent / "sealed.py"
NO_FILTER = 4

CONFIG = """
from pathlib import Path
from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.models.zoo import NETS
config = Config(
    model=NETS["lraspp_small_d8"],
    data=Data(dataset="folder", root=Path(ROOT), batch_size=2, crop_size=(32, 48), workers=0),
    optim=AdamW(lr=1e-3),
    schedule=Schedule(steps=2, min_lr=0, eval_every=2, save_every=2, log_every=1),
)
"""

COMMANDS = """
import time
from segmv3.cli import main
from segmv3.exporting import writing
writing._OTHER_SIZES, writing._TIMED_SIZE, writing._ROUNDS = (), (64, 128), 1
start = time.monotonic()
for command in (
    "export w.safetensors --to onnx -o a.onnx --images pictures",
    "export w.safetensors --to onnx-int8 -o b.onnx --images pictures",
    "export w.safetensors --to openvino -o a.xml --images pictures",
    "export w.safetensors --to openvino-int8 -o b.xml --images pictures",
    "export w.safetensors --to torch-export -o a.pt2 --images pictures",
    *(f"predict pictures --weights {file} --output out_{file}" for file in ("a.onnx", "b.onnx", "a.xml", "b.xml")),
    "predict pictures --weights a.pt2 --trust --output out_a.pt2",
    "predict pictures --weights w.safetensors --output out",
    "predict clip.mp4 --weights w.safetensors --output out_video",
    "train tiny.py --run run --tensorboard",
    "evaluate tiny.py --weights run/best.safetensors",
    "sweep tiny.py space.toml --output swept --trials 1",
    "data check tiny.py",
    "benchmark latency --net lraspp_small_d8 --size 64 128 --repeat 1 --force",
    "models",
    "weights list",
):
    code = main(command.split())
    assert code == 0, (command, code)
time.sleep(max(0, 20 - (time.monotonic() - start)))  # a report may wait for others to go with it
"""


def sealed(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a folder, which is its home too, without the internet."""
    command = [sys.executable, str(SEALED), sys.executable, "-c", code]
    home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "PATH": "", **environment}
    done = subprocess.run(command, cwd=folder, env=home, capture_output=True, text=True, check=False, timeout=400)
    if done.returncode == NO_FILTER:
        pytest.skip("this system has no seccomp listeners, which watch for it")
    return done


@pytest.mark.parametrize(
    "call",
    [
        "socket(AF_INET).connect(('127.0.0.1', 9))",
        "socket(AF_INET6).connect(('::1', 9))",
        "socket(AF_INET, SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "getaddrinfo('example.org', 80)",
    ],
)
def test_the_watch_sees_everything_that_is_sent(call, tmp_path):
    code = f"from socket import *; {call}"
    inside = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], stderr=subprocess.DEVNULL)"
    for done in (sealed(code, tmp_path), sealed(inside, tmp_path)):
        assert done.returncode == 3 and "wanted the internet" in done.stderr


def test_the_watch_leaves_other_sockets_alone(tmp_path):
    code = (
        "from socket import *; s = socket(AF_UNIX); s.bind('s'); s.listen(); socket(AF_UNIX).connect('s')\n"
        "socket(AF_INET); raise SystemExit(7)"
    )
    assert sealed(code, tmp_path).returncode == 7


@pytest.mark.slow
def test_packages_are_told_before_they_are_imported(tmp_path):
    """ONNX Runtime sends after seconds, what it stores at once; albumentations asks when it is imported."""
    pytest.importorskip("onnxruntime")
    code = "import segmv3.data.transforms, onnxruntime; print(onnxruntime.get_device())"
    done = sealed(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "CPU\n"), done.stderr
    assert not list(tmp_path.rglob("onnxruntime*"))


@pytest.mark.slow
def test_no_command_goes_to_the_internet(folder, tmp_path):
    for package in ("onnxruntime", "openvino", "nncf", "av", "tensorboard", "optuna", "pyspng"):
        pytest.importorskip(package)
    work = tmp_path / "work"
    (work / "pictures").mkdir(parents=True)
    pictures = [np.random.default_rng(i).integers(0, 256, (64, 128, 3), np.uint8) for i in range(8)]
    clip = cv2.VideoWriter(str(work / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (128, 64))
    for number, picture in enumerate(pictures):
        write_png(work / "pictures" / f"{number}.png", picture)
        clip.write(picture)
    clip.release()
    segmv3.save(create_model("lraspp_small_d8", 4), work / "w.safetensors")
    (work / "tiny.py").write_text(CONFIG.replace("ROOT", repr(str(folder))))
    (work / "space.toml").write_text('["optim.lr"]\nlow = 1e-4\nhigh = 1e-2\n')
    done = sealed(COMMANDS, work, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]

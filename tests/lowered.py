"""Says which instructions the packages use here, and fails when one uses more than AVX2: are the switches obeyed?"""

import os
import subprocess
import sys

import torch
from numba.core.registry import cpu_target

_TORCH = "import torch; torch.nn.functional.conv2d(torch.ones(1, 16, 64, 64), torch.ones(32, 16, 3, 3))"
_OPENVINO = """
import numpy as np, openvino as ov
x = ov.opset13.parameter([1, 3, 16, 16], np.float32, "x")
w = ov.opset13.constant(np.ones((8, 3, 3, 3), np.float32))
net = ov.Model([ov.opset13.convolution(x, w, [1, 1], [0, 0], [0, 0], [1, 1])], [x], "net")
ov.Core().compile_model(net, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.ones((1, 3, 16, 16), np.float32))
"""


def onednn(code: str) -> str:
    """What a package's oneDNN says of itself when it works."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | {"ONEDNN_VERBOSE": "1"}, capture_output=True, text=True, check=True)
    return next((line.partition(",isa:")[2] for line in done.stdout.splitlines() if ",isa:" in line), "says nothing")


def numba_features() -> str:
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return ",".join(name for name in ("avx2", "avx512f", "avx512vnni", "avxvnni") if f"+{name}" in features.split(","))


def main() -> int:
    found = {
        "PyTorch": torch.backends.cpu.get_cpu_capability(),
        "PyTorch's oneDNN": onednn(_TORCH),
        "OpenVINO's oneDNN": onednn(_OPENVINO),
        "numba": numba_features(),
    }
    for name, instructions in found.items():
        print(f"{name}: {instructions}")
    more = [name for name, instructions in found.items() if instructions.lower() not in ("avx2", "intel avx2")]
    if more:
        print(f"not at AVX2: {', '.join(more)}", file=sys.stderr)
    return bool(more)


if __name__ == "__main__":
    sys.exit(main())

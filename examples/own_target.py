"""An export target of your own: the net's arrays in one .npz, which NumPy, JAX and C++ read.

python examples/own_target.py best.safetensors street.npz photographs/
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segmv3
from segmv3.convert.base import Metadata, Run, Segmenter, Target
from segmv3.convert.graph import Graph


@dataclass(frozen=True)
class Npz(Target):
    name = "npz"
    suffix = ".npz"

    def write(self, model: Segmenter, metadata: Metadata, path: Path, *_: Any, **__: Any) -> None:
        np.savez(path, **{name: value.numpy() for name, value in model.state_dict().items()})

    def open(self, path: Path, metadata: Metadata, *_: Any, **__: Any) -> Run:
        model = segmv3.create_model(metadata.net, len(metadata.names))
        with np.load(path) as stored:
            model.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored.files})
        graph = Graph(model, metadata.output)
        return torch.inference_mode()(lambda images: graph(torch.from_numpy(images)))


if __name__ == "__main__":
    weights, output, photographs = sys.argv[1:]
    print(segmv3.export(weights, output, target=Npz(), images=photographs).agreement)
    predict = segmv3.load(output, targets=[Npz()])
    print(predict(segmv3.read_image(next(Path(photographs).iterdir()))).shape)

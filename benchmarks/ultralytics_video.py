"""Ultralytics' own predict on a clip, each time a line comes. Run by the Python of another environment.

Usage: python ultralytics_video.py CLIP HEIGHT WIDTH THREADS
"""

import importlib
import os
import sys
import time


def main() -> None:
    """Open the smallest semantic net, without weights, and label the clip as often as asked."""
    clip, height, width, threads = sys.argv[1], *map(int, sys.argv[2:5])
    os.environ |= {"YOLO_CONFIG_DIR": os.path.abspath("settings"), "YOLO_OFFLINE": "true"}  # noqa: PTH100
    import torch

    torch.set_num_threads(threads)
    package = importlib.import_module("ultralytics")
    name = "yolo26n-sem"
    net = package.YOLO(f"{name}.yaml")
    print(f"> ultralytics {package.__version__}, {name}, its own predict", flush=True)
    options = {"imgsz": (height, width), "save": True, "stream": True, "verbose": False, "device": "cpu"}
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _result in net.predict(clip, project=os.path.abspath("results"), name="x", exist_ok=True, **options):  # noqa: PTH100
            pass
        print(f"> {time.perf_counter() - wall} {time.process_time() - cpu}", flush=True)


if __name__ == "__main__":
    main()

"""The published weight files that can be used by name, with where they lie and how they are told genuine.

`sha256` is the full digest where one is known, else the first eight digits, which the authors put into the file's
name. The authors publish eight; the full ones were found in other projects' records of the same files and begin
with the published eight.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn

from segmv3.errors import CheckpointError
from segmv3.models.nets import Classifier
from segmv3.screen import Screen, Words, print_line
from segmv3.weights.download import Published, fetch
from segmv3.weights.formats import DLI14, FASTSEG, MMSEG, TIMM, TORCHVISION
from segmv3.weights.importing import Imported, import_weights

_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5/mobilenet_v3/"
_MMSEG_SOURCE = "mmsegmentation 1.2.2, configs/mobilenet_v3/metafile.yaml"
_DLI14 = "https://github.com/d-li14/mobilenetv3.pytorch/raw/master/pretrained/"
_FASTSEG = "https://github.com/ekzhang/fastseg/releases/download/v0.1-weights/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"
_TIMM_SOURCE = "timm's release and results/results-imagenet.csv"

_FULL_DIGESTS = {
    "8738ca79": "8738ca797c879b547d18bbd15da5736ff2557b2036a9af72225393ca61759a04",
    "5c1a4163": "5c1a416349c4cf298f2a6a5e2600ed0ee55e604713578f5e74e6bc8bcaef7997",
    "047dcff4": "047dcff4addef86ea5bc2eff13c9614dc11f47ab1160d0a71a25e7db994f4e1f",
    "d234d4ea": "d234d4eae9d55d5f76de18b77cf0dc62c66fe5c5482758209d00f950c92bb280",
    "f55367f5": "f55367f56f62fa6115a03033835fd60ef3094a1e0fdce6f38a5c97cbab27295f",
    "266a294c": "266a294cbf3d119000a760bf5664a4d80a9674d0616b5cc0836b093d20c38249",
    "9cbabfde": "9cbabfde06332879ebb2ef344506099f363efd377afdebdbdf548298ce18557e",
    "a39a1e4b": "a39a1e4b33a049fee6baa1139e911e71acd04f1c37c0038721ec1ef87507cd14",
}


def _published(name: str, url: str, accuracy: str, licence: str, source: str) -> Published:
    prefix = url.rpartition("-")[2].partition(".")[0]
    return Published(name, url, _FULL_DIGESTS.get(prefix, prefix), licence, source, accuracy)


def _mmseg() -> list[Published]:
    rows = [
        ("lraspp_m-v3-d8", "20201224_220337-cfe8fb07", "mIoU 69.54, ms+flip 70.89"),
        ("lraspp_m-v3-d8_scratch", "20201224_220337-9f29cd72", "mIoU 67.87, ms+flip 69.78"),
        ("lraspp_m-v3s-d8", "20201224_223935-61565b34", "mIoU 64.11, ms+flip 66.42"),
        ("lraspp_m-v3s-d8_scratch", "20201224_223935-03daeabb", "mIoU 62.74, ms+flip 65.01"),
    ]
    return [
        _published(
            f"mmseg/{net}",
            f"{_MMSEG}{net}_512x1024_320k_cityscapes/{net}_512x1024_320k_cityscapes_{end}.pth",
            score,
            MMSEG.licence,
            _MMSEG_SOURCE,
        )
        for net, end, score in rows
    ]


def _torchvision() -> list[Published]:
    """What torchvision's weights API lists."""
    from torchvision.models import get_model_weights

    entries = []
    for model in ("mobilenet_v3_large", "mobilenet_v3_small", "lraspp_mobilenet_v3_large"):
        for weights in get_model_weights(model):
            (data, metrics), *_ = weights.meta["_metrics"].items()
            score = ", ".join(f"{name} {value}" for name, value in metrics.items())
            name = f"torchvision/{model}" + ("" if weights.name.endswith("V1") else "_v2")
            licence = f"{TORCHVISION.licence}; the weights carry no licence of their own"
            entries.append(_published(name, weights.url, f"{data}: {score}", licence, "torchvision's weights API"))
    return entries


def _dli14() -> list[Published]:
    rows = [
        ("large-1cd25616", "top-1 74.280, top-5 91.928"),
        ("large-0.75-9632d2a8", "top-1 72.842, top-5 90.846"),
        ("small-55df8e1f", "top-1 67.214, top-5 87.304"),
        ("small-0.75-86c972c3", "top-1 64.876, top-5 85.498"),
    ]
    return [
        _published(
            f"d-li14/mobilenetv3-{end.rpartition('-')[0]}",
            f"{_DLI14}mobilenetv3-{end}.pth",
            score,
            DLI14.licence,
            "README of d-li14/mobilenetv3.pytorch",
        )
        for end, score in rows
    ]


def _timm() -> list[Published]:
    rows = [
        ("mobilenetv3_large_100", "v0.1-weights/mobilenetv3_large_100_ra-f55367f5", "75.766, top-5 92.544"),
        ("mobilenetv3_large_100.miil", "v0.1-tresnet/mobilenetv3_large_100_1k_miil_78_0-66471c13", "78.0 (its name)"),
        ("mobilenetv3_large_100.miil_in21k", "v0.1-tresnet/mobilenetv3_large_100_in21k_miil-d71cc17b", "not published"),
        ("mobilenetv3_rw", "v0.1-weights/mobilenetv3_100-35495452", "75.632, top-5 92.708"),
        ("mobilenetv3_small_100", "v0.1-weights/mobilenetv3_small_100_lamb-266a294c", "67.656, top-5 87.634"),
        ("mobilenetv3_small_075", "v0.1-weights/mobilenetv3_small_075_lambc-384766db", "65.242, top-5 85.438"),
        ("mobilenetv3_small_050", "v0.1-weights/mobilenetv3_small_050_lambc-4b7bbe87", "57.890, top-5 80.194"),
        ("tf_mobilenetv3_large_100", "v0.1-weights/tf_mobilenetv3_large_100-427764d5", "75.51, top-5 92.61"),
        ("tf_mobilenetv3_large_075", "v0.1-weights/tf_mobilenetv3_large_075-150ee8b0", "73.45, top-5 91.34"),
        (
            "tf_mobilenetv3_large_minimal_100",
            "v0.1-weights/tf_mobilenetv3_large_minimal_100-8596ae28",
            "72.24, top-5 90.64",
        ),
        ("tf_mobilenetv3_small_100", "v0.1-weights/tf_mobilenetv3_small_100-37f49e2b", "67.92, top-5 87.68"),
        ("tf_mobilenetv3_small_075", "v0.1-weights/tf_mobilenetv3_small_075-da427f52", "65.72, top-5 86.13"),
        (
            "tf_mobilenetv3_small_minimal_100",
            "v0.1-weights/tf_mobilenetv3_small_minimal_100-922a7843",
            "62.91, top-5 84.24",
        ),
    ]
    return [
        _published(f"timm/{name}", f"{_TIMM}{path}.pth", f"top-1 {score}", TIMM.licence, _TIMM_SOURCE)
        for name, path, score in rows
    ]


def _fastseg() -> list[Published]:
    """Trained on a split of their own that holds a part of the official val set: scores on val mean nothing."""
    rows = [
        ("large-f256", "mobilev3large-lraspp-f256-9b613ffd", "72.3"),
        ("large-f128", "mobilev3large-lraspp-f128-9cbabfde", "72.3"),
        ("small-f256", "mobilev3small-lraspp-f256-d853f901", "67.8"),
        ("small-f128", "mobilev3small-lraspp-f128-a39a1e4b", "67.4"),
        ("small-f64", "mobilev3small-lraspp-f64-114fc23b", "66.9"),
    ]
    licence = f"{FASTSEG.licence}; trained on a part of Cityscapes val, so never score it there"
    return [
        _published(
            f"fastseg/{name}",
            f"{_FASTSEG}{end}.pt",
            f"mIoU {score} on another split than Cityscapes val",
            licence,
            "README and issue 6 of ekzhang/fastseg",
        )
        for name, end, score in rows
    ]


def _view(name: str) -> dict[str, Any]:
    """How the pictures were cut for the published accuracy: torchvision's presets, timm's pretrained_cfg."""
    if name == "torchvision/mobilenet_v3_large_v2":
        return {"resize": 232, "interpolation": "bilinear"}
    bicubic = name.startswith("timm/mobilenetv3") and "miil" not in name
    return {"resize": 256, "interpolation": "bicubic" if bicubic else "bilinear"}


@cache
def published() -> dict[str, Published]:
    """All published files by name."""
    entries = [*_mmseg(), *_torchvision(), *_dli14(), *_timm(), *_fastseg()]
    return {entry.name: entry for entry in entries}


def find(name: str, *, offline: bool = False, say: Callable[[str], None] = print_line) -> Imported:
    """The weights of a published name, downloaded unless they are in the cache, with a bar on a terminal.

    Raises: CheckpointError when there is no such name (it gives the nearest), or the file cannot be had.
    """
    entries = published()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "segmv3 weights list shows them"
        raise CheckpointError(f"{name} is neither a file nor a published name; {hint}")
    entry = entries[name]
    columns = (Words(), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Screen(stderr=True).progress(*columns) as bar:
        task = bar.add_task(f"download {name}", total=None, visible=False)
        path = fetch(
            entry,
            offline=offline,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
            say=say,
        )
    imported = import_weights(path)
    facts: dict[str, Any] = {"name": name, "url": entry.url, "licence": entry.licence, "published": entry.accuracy}
    if isinstance(imported.net, Classifier):
        facts["view"] = _view(name)
    return replace(imported, origin=imported.origin | facts, notes=())

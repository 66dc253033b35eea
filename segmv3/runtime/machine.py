"""What a measurement or a proof was made on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from segmv3.checkpoint import package_version, source_commit

_FLAGS = (
    "avx2",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)
_TORCH_NAMES = {"avx512f": "avx512_f", "asimd": "neon"}
_PACKAGES = (
    "torch",
    "torchvision",
    "openvino",
    "onnxruntime",
    "onnx",
    "nncf",
    "numba",
    "numpy",
    "opencv-python-headless",
)


def machine() -> dict[str, Any]:
    """The CPU with the instructions that matter here, its cores, memory, GPU, system and versions, as JSON types."""
    return {
        "cpu": cpu_name(),
        "flags": cpu_flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions(),
        "segmv3": package_version(),
        "commit": source_commit(),
    }


def cpu_name() -> str:
    """Such as "AMD EPYC 9354"."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The vector and matrix instructions of this CPU that speed up a net."""
    # asked of the CPU itself where torch can: /proc/cpuinfo is Linux only, and under an emulator that of the host
    found = {name for name, there in getattr(torch.cpu, "get_capabilities", dict)().items() if there is True}
    if not found:
        found = next((set(line.split()) for line in _cpuinfo() if line.startswith(("flags", "Features"))), set())
    return [flag for flag in _FLAGS if {flag, _TORCH_NAMES.get(flag)} & found]


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


def saturates() -> bool:
    """Whether this CPU sums products of bytes in 16 bits and cuts off what is larger: x86 without VNNI."""
    return "avx2" in cpu_flags() and not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(cpu_flags())


def versions() -> dict[str, str]:
    """Versions of the installed packages that decide about speed and numbers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def software() -> list[str]:
    """Everything installed that decides about a net in another runtime: segmv3 itself and `versions`."""
    return [package_version(), source_commit(), *(f"{name} {version}" for name, version in versions().items())]


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _memory() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)

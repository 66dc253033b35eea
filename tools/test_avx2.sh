#!/usr/bin/env bash
# The tests whose numbers depend on the processor, as on one with AVX2 and FMA and neither AVX-512, VNNI nor bf16.
#
# First by the switches of the packages: PyTorch, its oneDNN and MKL, OpenVINO's oneDNN, numba and NumPy then use no more
# (tests/lowered.py asks them), at full speed. ONNX Runtime has no such switch: its int8 nets, and what segmv3 itself
# asks of the processor, run under qemu-user's Haswell, many times slower, so that only few tests do.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

if [ "$(uname -m)" != x86_64 ]; then
    echo "test-avx2: left out, this is no x86-64 processor"
    exit 0
fi

(
    export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
    export NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt
    export NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR"
    $python tests/lowered.py
    $python -m pytest -m "not slow" tests/test_int8.py tests/test_decode.py tests/test_losses.py \
        tests/test_parity.py tests/test_mini_city.py tests/test_benchmark_timing.py
)

if ! command -v qemu-x86_64 > /dev/null; then
    echo "test-avx2: ONNX Runtime's int8 is left out, qemu-user is not installed (apt-get install qemu-user)"
    exit 0
fi
# NumPy's own AVX2 loops end in a segmentation fault under qemu 7: it reads whole vectors where masked ones are asked for.
export NPY_DISABLE_CPU_FEATURES=X86_V3
qemu="qemu-x86_64 -cpu Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"
$qemu $python -c "
from segmv3.runtime.machine import cpu_flags, has_bf16, saturates
assert (cpu_flags(), saturates(), has_bf16()) == (['avx2', 'f16c'], True, False), cpu_flags()"
$qemu $python -m pytest -p no:cacheprovider tests/test_int8.py tests/test_benchmark_timing.py \
    -k "(stays_close and any) or auto"

"""What the loss needs of sixteen numbers at a time beside `segmv3.decode.simd`. NaN stays NaN everywhere here.

numba keeps the compiled loops until `cpu.py` changes; it does not notice a change of this file: touch that one too.
"""

from llvmlite import ir  # type: ignore[import-untyped]

from segmv3.decode.simd import LANES, Floats, Ids, _constant, _fused, _operation


def _whole(number: int) -> ir.Constant:
    return ir.Constant(Ids.vector, [ir.Constant(ir.IntType(32), number)] * LANES)


@_operation(Floats, Floats, Floats, Floats, returns=Floats)
def where_equal(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, same: ir.Value, other: ir.Value) -> ir.Value:
    """`same` where a equals b, else `other`."""
    return builder.select(builder.fcmp_ordered("==", a, b), same, other)


@_operation(Floats, Floats, returns=Floats)
def over(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a / b."""
    return builder.fdiv(a, b)


@_operation(Floats, Floats, returns=Floats)
def exp_below(builder: ir.IRBuilder, value: ir.Value, best: ir.Value) -> ir.Value:
    """exp(value - best) for value <= best, at least exp(-87), to a few units in the last place (Cephes' expf)."""
    x = builder.fsub(value, best)
    x = builder.select(builder.fcmp_ordered("<", x, _constant(-87.0)), _constant(-87.0), x)
    shift = _constant(12583039.0)  # 1.5 * 2^23 + 127: adding it rounds, and the lowest bits are a float's exponent
    shifted = _fused(builder, x, _constant(1.4426950408889634), shift)
    power = builder.bitcast(builder.shl(builder.bitcast(shifted, Ids.vector), _whole(23)), Floats.vector)
    n = builder.fsub(shifted, shift)
    r = _fused(builder, n, _constant(-0.693359375), x)
    r = _fused(builder, n, _constant(2.12194440e-4), r)
    p = _constant(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = _fused(builder, p, r, _constant(c))
    p = builder.fadd(_fused(builder, p, builder.fmul(r, r), r), _constant(1.0))
    return builder.fmul(p, power)


@_operation(Floats, returns=Floats)
def log(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The natural logarithm of normal positive numbers, to a few units in the last place (Cephes' logf)."""
    bits = builder.bitcast(x, Ids.vector)
    exponent = builder.ashr(builder.sub(bits, _whole(0x3F3504F3)), _whole(23))  # of x over sqrt(1/2)
    n = builder.sitofp(exponent, Floats.vector)
    m = builder.bitcast(builder.sub(bits, builder.shl(exponent, _whole(23))), Floats.vector)
    f = builder.fsub(m, _constant(1.0))
    square = builder.fmul(f, f)
    p = _constant(7.0376836292e-2)
    for c in (
        *(-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    ):
        p = _fused(builder, p, f, _constant(c))
    p = builder.fmul(builder.fmul(p, f), square)
    p = _fused(builder, n, _constant(-2.12194440e-4), p)
    p = _fused(builder, square, _constant(-0.5), p)
    p = _fused(builder, n, _constant(0.693359375), builder.fadd(f, p))
    return _fused(builder, x, _constant(0.0), p)  # the bits of a NaN went through as a number

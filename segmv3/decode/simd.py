"""Sixteen numbers at a time, as values of numba-compiled code.

The loops of `segmv3.decode.cpu` keep a running winner for each of sixteen pixels. Written over arrays, numba stores and
reloads that winner for every class; as values it stays in registers. LLVM splits the sixteen to what a processor has.

numba keeps the compiled loops until `cpu.py` changes; it does not notice a change of this file: touch that one too.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16

_FLOAT, _INT, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)


class _Lanes(types.Type):
    def __init__(self, element: ir.Type) -> None:
        self.vector = ir.VectorType(element, LANES)
        super().__init__(name=f"Lanes({element})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, kind.vector)


Floats, Ids = _Lanes(_FLOAT), _Lanes(_INT)


def _constant(values: list[float] | float) -> ir.Constant:
    listed = values if isinstance(values, list) else [values] * LANES
    return ir.Constant(Floats.vector, [ir.Constant(_FLOAT, float(value)) for value in listed])


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    vector = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_INT, 0))
    zeros = ir.Constant(ir.VectorType(_INT, LANES), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _fused(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once where the processor can."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _place(context: Any, builder: ir.IRBuilder, array: types.Array, value: ir.Value, at: ir.Value) -> ir.Value:
    return builder.gep(context.make_array(array)(context, builder, value).data, [at])


def _operation(*arguments: types.Type, returns: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from a function (builder, *values) -> value."""

    def decorate(emit: Callable[..., ir.Value]) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            return emit(builder, *values)

        if len(arguments) == 1:
            return intrinsic(lambda typing, a: (returns(*arguments), codegen))
        if len(arguments) == 2:
            return intrinsic(lambda typing, a, b: (returns(*arguments), codegen))
        if len(arguments) == 3:
            return intrinsic(lambda typing, a, b, c: (returns(*arguments), codegen))
        return intrinsic(lambda typing, a, b, c, d: (returns(*arguments), codegen))

    return decorate


@intrinsic
def load(typing: Any, array: Any, at: Any) -> Any:
    """Sixteen neighbours of a flat float32 array, from index `at` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        place = _place(context, builder, signature.args[0], *values)
        return builder.load(builder.bitcast(place, Floats.vector.as_pointer()), align=4)

    return Floats(array, types.intp), codegen


@intrinsic
def store(typing: Any, array: Any, at: Any, lanes: Any) -> Any:
    """Into sixteen neighbours of a flat array: floats into float32, ids into uint8."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        place, value, align = _place(context, builder, signature.args[0], *values[:2]), values[2], 4
        if signature.args[2] == Ids:
            value, align = builder.trunc(value, ir.VectorType(_BYTE, LANES)), 1
        builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@_operation(types.float32, returns=Floats)
def floats(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same number sixteen times."""
    return _splat(builder, value)


@_operation(types.int32, returns=Ids)
def ids(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same id sixteen times."""
    return _splat(builder, value)


@_operation(Floats, Floats, returns=Floats)
def larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The maximum; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_operation(Floats, Floats, returns=Floats)
def smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The minimum; b where a is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@_operation(Floats, Floats, Ids, Ids, returns=Ids)
def winner(builder: ir.IRBuilder, value: ir.Value, best: ir.Value, new: ir.Value, old: ir.Value) -> ir.Value:
    """The new id where the value is above the best so far, else the old one."""
    return builder.select(builder.fcmp_ordered(">", value, best), new, old)


@_operation(Floats, Floats, Floats, Floats, returns=Floats)
def mix(builder: ir.IRBuilder, p: ir.Value, a: ir.Value, q: ir.Value, b: ir.Value) -> ir.Value:
    """p * a + q * b, rounded so that it never falls when a or b grows (p, q >= 0). The corner rule needs that."""
    return _fused(builder, p, a, builder.fmul(q, b, flags=("contract",)))


@_operation(Floats, Floats, returns=types.boolean)
def any_at_least(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Whether a >= b in at least one lane."""
    mask = builder.bitcast(builder.fcmp_ordered(">=", a, b), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0))


@_operation(Floats, types.float32, returns=Floats)
def only_first(builder: ir.IRBuilder, a: ir.Value, count: ir.Value) -> ir.Value:
    """Infinity in all lanes but the first `count`."""
    inside = builder.fcmp_ordered("<", _constant([float(i) for i in range(LANES)]), _splat(builder, count))
    return builder.select(inside, a, _constant(float("inf")))


@_operation(Floats, Floats, Floats, returns=Floats)
def add_exp(builder: ir.IRBuilder, total: ir.Value, value: ir.Value, best: ir.Value) -> ir.Value:
    """total + exp(value - best) for value <= best, to a few units in the last place (Cephes' expf)."""
    x = builder.fsub(value, best)
    x = builder.select(builder.fcmp_ordered(">", x, _constant(-87.0)), x, _constant(-87.0))
    shift = _constant(12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number
    n = builder.fsub(_fused(builder, x, _constant(1.4426950408889634), shift), shift)
    r = _fused(builder, n, _constant(-0.693359375), x)
    r = _fused(builder, n, _constant(2.12194440e-4), r)
    p = _constant(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = _fused(builder, p, r, _constant(c))
    p = builder.fadd(_fused(builder, p, builder.fmul(r, r), r), _constant(1.0))
    bias, bits = (ir.Constant(Ids.vector, [ir.Constant(_INT, number)] * LANES) for number in (127, 23))
    power = builder.shl(builder.add(builder.fptosi(n, Ids.vector), bias), bits)
    return _fused(builder, p, builder.bitcast(power, Floats.vector), total)

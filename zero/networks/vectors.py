"""Vectors of sixteen floats for compiled code, where numba would not vectorise the loop by itself.

The functions are NumPy in the interpreter and one machine instruction or a few when compiled. Numba watches only the
file of the function that it compiled: who changes this one must touch its importers too.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model
from numpy.typing import NDArray

LANES = 16
"""Floats per vector: one register of AVX-512; where registers are narrower, the compiler takes several."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_FLOAT_ALIGNMENT = 4

Floats = NDArray[np.float32]
Vector = NDArray[Any]
"""LANES numbers of float32; of any type for pyright, to which sums of float32 are float64."""


class VectorType(types.Type):
    """A vector as numba types it."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


_vector = VectorType()
_intrinsic = cast("Callable[[Callable[..., Any]], Callable[..., Any]]", intrinsic)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _VECTOR)


def load(array: Floats, index: int) -> Vector:
    """The vector at array[index:index + LANES]; the array has one dimension and is contiguous."""
    return array[index : index + LANES].copy()


def store(array: Floats, index: int, vector: Vector) -> None:
    """Set array[index:index + LANES]."""
    array[index : index + LANES] = vector


def splat(number: float | np.float32) -> Vector:
    """A float32 in every lane."""
    return np.full(LANES, number, np.float32)


def multiply_add(left: Vector, right: Vector, addend: Vector) -> Vector:
    """The vector left * right + addend, rounded once or twice as the processor likes."""
    return left * right + addend


def positive_part(vector: Vector) -> Vector:
    """The larger of each lane and 0."""
    return np.maximum(vector, np.float32(0))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@_intrinsic
def _load(_typing: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature.args[0], *arguments))
        loaded.align = _FLOAT_ALIGNMENT
        return loaded

    return _vector(array, types.intp), generate


@_intrinsic
def _store(_typing: Any, array: Any, _index: Any, _vector_type: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, vector = arguments
        stored = builder.store(vector, _address(context, builder, signature.args[0], array, index))
        stored.align = _FLOAT_ALIGNMENT
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), generate


@_intrinsic
def _splat(_typing: Any, _number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        index = ir.IntType(32)
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(index, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    return _vector(types.float32), generate


@_intrinsic
def _multiply_add(_typing: Any, _left: Any, _right: Any, _addend: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        name = f"llvm.fmuladd.v{LANES}f32"
        function_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)

    return _vector(_vector, _vector, _vector), generate


@_intrinsic
def _positive_part(_typing: Any, _vector_type: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        # Unordered, so that what is not a number stays what it is.
        return builder.select(builder.fcmp_unordered("<", zero, arguments[0]), arguments[0], zero)

    return _vector(_vector), generate


def _arithmetic(instruction: str) -> Callable[..., Any]:
    @_intrinsic
    def operation(_typing: Any, _left: Any, _right: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=("contract",))

        return _vector(_vector, _vector), generate

    return operation


_add, _subtract = _arithmetic("fadd"), _arithmetic("fsub")


# numba wants the same parameters, annotations included, of what stands for a function and of what it overloads.
@overload(load)
def _overload_load(array: Any, index: Any) -> Any:  # noqa: ARG001
    def implementation(array: Any, index: Any) -> Any:
        return _load(array, index)

    return implementation


@overload(store)
def _overload_store(array: Any, index: Any, vector: Any) -> Any:  # noqa: ARG001
    def implementation(array: Any, index: Any, vector: Any) -> Any:
        return _store(array, index, vector)

    return implementation


@overload(splat)
def _overload_splat(number: Any) -> Any:  # noqa: ARG001
    def implementation(number: Any) -> Any:
        return _splat(np.float32(number))

    return implementation


@overload(multiply_add)
def _overload_multiply_add(left: Any, right: Any, addend: Any) -> Any:  # noqa: ARG001
    def implementation(left: Any, right: Any, addend: Any) -> Any:
        return _multiply_add(left, right, addend)

    return implementation


@overload(positive_part)
def _overload_positive_part(vector: Any) -> Any:  # noqa: ARG001
    def implementation(vector: Any) -> Any:
        return _positive_part(vector)

    return implementation


@overload(operator.add)
def _overload_add(left: Any, right: Any) -> Any:
    def implementation(left: Any, right: Any) -> Any:
        return _add(left, right)

    return implementation if left == right == _vector else None


@overload(operator.sub)
def _overload_subtract(left: Any, right: Any) -> Any:
    def implementation(left: Any, right: Any) -> Any:
        return _subtract(left, right)

    return implementation if left == right == _vector else None

"""Vectors of sixteen floats for compiled code, where numba would not vectorise the loop by itself.

The functions are NumPy in the interpreter and one machine instruction or a few when compiled. Numba watches only the
file of the function that it compiled: who changes this one must touch its importers too.
"""

import operator
from collections.abc import Callable
from typing import Any

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


class VectorType(types.Type):
    """A vector as numba types it."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


_vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _VECTOR)


def load(array: Floats, index: int) -> Floats:
    """The vector at array[index:index + LANES]; the array has one dimension and is contiguous."""
    return array[index : index + LANES].copy()


def store(array: Floats, index: int, vector: Floats) -> None:
    """Set array[index:index + LANES]."""
    array[index : index + LANES] = vector


def splat(number: float | np.float32) -> Floats:
    """A float32 in every lane."""
    return np.full(LANES, number, np.float32)


def multiply_add(left: Floats, right: Floats, addend: Floats) -> Floats:
    """The vector left * right + addend, rounded once or twice as the processor likes."""
    return left * right + addend


def positive_part(vector: Floats) -> Floats:
    """The larger of each lane and 0."""
    return np.maximum(vector, np.float32(0))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@intrinsic
def _load(_typing: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature.args[0], *arguments))
        loaded.align = _FLOAT_ALIGNMENT
        return loaded

    return _vector(array, types.intp), generate


@intrinsic
def _store(_typing: Any, array: Any, _index: Any, _vector_type: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, vector = arguments
        stored = builder.store(vector, _address(context, builder, signature.args[0], array, index))
        stored.align = _FLOAT_ALIGNMENT
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), generate


@intrinsic
def _splat(_typing: Any, _number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        index = ir.IntType(32)
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(index, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    return _vector(types.float32), generate


@intrinsic
def _multiply_add(_typing: Any, _left: Any, _right: Any, _addend: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        name = f"llvm.fmuladd.v{LANES}f32"
        function_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)

    return _vector(_vector, _vector, _vector), generate


@intrinsic
def _positive_part(_typing: Any, _vector_type: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        # Unordered, so that what is not a number stays what it is.
        return builder.select(builder.fcmp_unordered("<", zero, arguments[0]), arguments[0], zero)

    return _vector(_vector), generate


def _arithmetic(instruction: str) -> Callable[..., Any]:
    @intrinsic
    def operation(_typing: Any, _left: Any, _right: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=("contract",))

        return _vector(_vector, _vector), generate

    return operation


_add, _subtract, _multiply = _arithmetic("fadd"), _arithmetic("fsub"), _arithmetic("fmul")


# numba wants functions of Python here, and their names for the arguments.
@overload(load, strict=False)
def _overload_load(array: Any, index: Any) -> Any:  # noqa: ARG001
    return lambda array, index: _load(array, index)  # noqa: PLW0108


@overload(store, strict=False)
def _overload_store(array: Any, index: Any, vector: Any) -> Any:  # noqa: ARG001
    return lambda array, index, vector: _store(array, index, vector)  # noqa: PLW0108


@overload(splat, strict=False)
def _overload_splat(number: Any) -> Any:  # noqa: ARG001
    return lambda number: _splat(np.float32(number))


@overload(multiply_add, strict=False)
def _overload_multiply_add(left: Any, right: Any, addend: Any) -> Any:  # noqa: ARG001
    return lambda left, right, addend: _multiply_add(left, right, addend)  # noqa: PLW0108


@overload(positive_part, strict=False)
def _overload_positive_part(vector: Any) -> Any:  # noqa: ARG001
    return lambda vector: _positive_part(vector)  # noqa: PLW0108


@overload(operator.add, strict=False)
def _overload_add(left: Any, right: Any) -> Any:
    return (lambda left, right: _add(left, right)) if left == right == _vector else None  # noqa: PLW0108


@overload(operator.sub, strict=False)
def _overload_subtract(left: Any, right: Any) -> Any:
    return (lambda left, right: _subtract(left, right)) if left == right == _vector else None  # noqa: PLW0108


@overload(operator.mul, strict=False)
def _overload_multiply(left: Any, right: Any) -> Any:
    return (lambda left, right: _multiply(left, right)) if left == right == _vector else None  # noqa: PLW0108

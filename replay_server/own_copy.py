"""Copies of samples, so that a caller may go on using what it gave."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np

_VALUES = frozenset((bool, int, float, complex, str, bytes, type(None)))


def own_copy(value: Any) -> Any:
    """A copy that shares nothing that can change; tensors lose their gradient."""
    kind = type(value)
    if kind in _VALUES:
        return value
    if kind is np.ndarray and not value.dtype.hasobject:
        return value.copy()
    copier = _CONTAINERS.get(kind)
    return _other_copy(value) if copier is None else copier(value)


def _other_copy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return cast(Any, value)
    if hasattr(value, "detach") and hasattr(value, "clone"):  # a tensor, and what it was computed with stays behind
        return value.detach().clone()
    return copy.deepcopy(value)


def _own_dict(value: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: own_copy(inner) for name, inner in value.items()}


_CONTAINERS: dict[type, Callable[[Any], Any]] = {
    dict: _own_dict,
    MappingProxyType: _own_dict,  # what it shows can change, and it cannot be copied itself
    list: lambda value: [own_copy(inner) for inner in value],
    tuple: lambda value: tuple([own_copy(inner) for inner in value]),
}

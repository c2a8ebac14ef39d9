"""Bytes that are still to be written, so that a message of megabytes is gathered in place and never copied."""

import ctypes

import numpy as np
from numpy.typing import NDArray

# The C API allows to write into a bytes object that was just made this way and that nobody else has seen:
# https://docs.python.org/3/c-api/bytes.html#c.PyBytes_AsString
_new = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
_new.restype = ctypes.py_object
_memory = ctypes.pythonapi.PyBytes_AsString
_memory.argtypes = (ctypes.py_object,)
_memory.restype = ctypes.c_void_p
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view.restype = ctypes.py_object
_WRITABLE = 0x200  # PyBUF_WRITE


def fresh_bytes(size: int) -> tuple[bytes, NDArray[np.uint8]]:
    """Bytes with arbitrary content, and the same memory as an array [size] to write it.

    The array must neither be written any more once somebody else has the bytes, nor live longer than they do.
    """
    message: bytes = _new(None, size)
    return message, np.frombuffer(_view(_memory(message), size, _WRITABLE), np.uint8)

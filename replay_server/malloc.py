"""The C allocator told to keep large blocks: half the cost of moving megabyte messages is page faults otherwise."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_MIB = 1 << 20


def tune_malloc() -> bool:
    """Keep freed blocks of up to 32 MiB in the process instead of returning them to the system.

    By default glibc maps every large block afresh and each of its pages faults on first touch. Worth calling once in
    every process that sends or receives batches; costs up to 64 MiB of resident memory.

    Returns:
        Whether the allocator took the settings; False where the C library has no mallopt (macOS, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 2048 * _MIB - 1), (_M_TOP_PAD, 64 * _MIB))
    accepted = [mallopt(option, value) == 1 for option, value in settings]
    return all(accepted)

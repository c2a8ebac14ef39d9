"""Starts a Ray of this command's own on this machine, which nobody else can join and which reports to nobody."""

import logging
import os
import secrets
import tempfile
from pathlib import Path

import ray

OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's smallest object store: the data of a run go over gRPC, never through Ray."""
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # else Ray reports its use over the network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_ray_environment() -> None:
    """Set what Ray reads from the environment, wherever nobody has; before Ray is started or joined."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start_private_ray(num_cpus: int) -> Path:
    """Start Ray, join it, and return the folder with its files, to be removed after `ray.shutdown()`.

    Args:
        num_cpus: logical ones; the operating system shares out the real ones.
    """
    set_ray_environment()
    # Ray lets in who has a token; one for this command alone spares it writing one into the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray keeps unix sockets below it, whose paths must be shorter than 108 bytes: so not below a long TMPDIR.
    temp_dir = Path(tempfile.mkdtemp(prefix="zero-ray-", dir="/tmp"))
    ray.init(
        address="local",  # even where RAY_ADDRESS names a cluster
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(temp_dir),
    )
    return temp_dir

"""Joins a Ray cluster that others have started, or says in one line why that cannot be."""

import logging
import socket
from collections.abc import Generator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from deploy.errors import BAD_INPUT, DeployError
from deploy.private_ray import set_ray_environment

CONNECT_SECONDS = 5.0


@contextmanager
def joined_ray(ray_address: str) -> Generator[None]:
    """Be part of a cluster meanwhile.

    Args:
        ray_address: host:port of its head, or "auto" for the cluster of this machine.

    Raises:
        DeployError: it cannot be joined.
    """
    if ray_address.startswith("ray://"):
        raise DeployError(
            f"--ray-address {ray_address}: run the command on a machine of the cluster and give host:port or auto",
            BAD_INPUT,
        )
    _refuse_if_silent(ray_address)
    set_ray_environment()
    try:
        ray.init(address=ray_address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DeployError(
            f"--ray-address {ray_address}: {first_line}; if the cluster asks for a token, "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_if_silent(ray_address: str) -> None:
    """Raise DeployError if nothing listens there: Ray would try for a minute."""
    host, separator, port = ray_address.rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except ValueError:
        raise DeployError(f"--ray-address {ray_address}: write it as host:port, or auto", BAD_INPUT) from None
    except OSError as error:
        raise DeployError(f"--ray-address {ray_address}: {error.strerror or error}") from None

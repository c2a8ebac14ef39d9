"""Takes room in the Ray cluster that RAY_ADDRESS names: actors of our kind begin, and end, when its input says so."""

import sys
from typing import Any

import ray

from deploy.placement import Placement
from deploy.ray_cluster import joined_ray
from deploy.ray_fleet import placement_options

PATIENCE_SECONDS = 100.0


class Sits:
    """An actor that takes the room of one that plays."""

    def node(self) -> str:
        """Where it is."""
        return ray.get_runtime_context().get_node_id()


def main(num_actors: int, num_placed: int) -> None:
    """Say on how many machines the first are, then how many more there are by and by, then that they have ended."""
    with joined_ray("auto"):
        say("joined")
        options = placement_options(Placement(), 1.0, 0.0)
        actors: list[Any] = [ray.remote(Sits).options(**options).remote() for _ in range(num_actors)]
        placed, waiting = ray.wait(
            [it.node.remote() for it in actors], num_returns=num_placed, timeout=PATIENCE_SECONDS
        )
        say(f"{len(placed)} on {len(set(ray.get(placed)))} machines")
        say(f"{len(ray.wait(waiting, timeout=0)[0])} more")
        for actor in actors:
            ray.kill(actor)
        say("ended")


def say(text: str) -> None:
    """Say it, and wait for a line of input."""
    print(text, flush=True)  # noqa: T201 -- to whoever has started it
    sys.stdin.readline()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

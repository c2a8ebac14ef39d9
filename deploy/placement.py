"""Which machines of a Ray cluster roles may be placed on: the CPUs, GPUs and other resources that each asks for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploy.errors import BAD_INPUT, DeployError
from deploy.roles import Role

SUPERVISOR = "supervisor"
"""The process that keeps the others alive; it is placed like a role."""
_PLACED = (SUPERVISOR, *(role.value for role in Role))
_EXAMPLE = "learner:cpu=4,gpu=1"


@dataclass(frozen=True)
class Placement:
    """What a role asks of a machine, in Ray's logical units.

    Attributes:
        cpus: None for what its role asks for by itself.
        gpus: None as well.
        resources: others by name, as `ray start --resources` gives them to a machine. A role that keeps the run's
            folder and asks for one may be on any machine that has it: these must share the folder.
    """

    cpus: float | None = None
    gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict[str, float])


def parse_placements(texts: Sequence[str]) -> dict[str, Placement]:
    """Read `ROLE:NAME=AMOUNT,...`, by role; later ones win.

    Raises:
        DeployError: an unknown role, or something that is no amount.
    """
    return dict(_parse(text) for text in texts)


def _parse(text: str) -> tuple[str, Placement]:
    role, separator, rest = text.partition(":")
    if role not in _PLACED or not separator:
        raise DeployError(f"--place {text}: begin with one of {', '.join(_PLACED)}, for example {_EXAMPLE}", BAD_INPUT)
    amounts: dict[str, float] = {}
    for part in rest.split(","):
        name, _, amount = part.partition("=")
        amounts[name.strip()] = _amount(text, amount)
    return role, Placement(amounts.pop("cpu", None), amounts.pop("gpu", None), amounts)


def _amount(text: str, amount: str) -> float:
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:  # nor is NaN
        raise DeployError(f"--place {text}: write NAME=AMOUNT with an amount of 0 or more, as in {_EXAMPLE}", BAD_INPUT)
    return value

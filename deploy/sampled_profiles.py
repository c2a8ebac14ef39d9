"""What `zero profile show` tells of a run that was trained with --profile: the functions that took most of the time."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from deploy.errors import BAD_INPUT, DeployError
from deploy.run_folder import RunFolder
from deploy.sampler import SUFFIX


@dataclass(frozen=True)
class FunctionShare:
    """A function's part of the time of a role.

    Attributes:
        function: module and name.
        own: the share in which nothing that it calls was at work.
        together: the share with what it calls.
    """

    function: str
    own: float
    together: float


@dataclass(frozen=True)
class SampledProfile:
    """Where the time of a role went.

    Attributes:
        file: it is in.
        samples: looks at the role.
        functions: the one with the largest share of its own first.
    """

    file: Path
    samples: int
    functions: tuple[FunctionShare, ...]


def newest_profiles(folder: RunFolder) -> dict[str, SampledProfile]:
    """Of every role by name, of the last time that it ran.

    Raises:
        DeployError: there is none, or a file is damaged.
    """
    files = {path.name.rsplit("-", 3)[0]: path for path in sorted(folder.profiles.glob(f"*{SUFFIX}"))}
    if not files:
        raise DeployError(f"{folder.path} has no profiles: go on with it by zero train --profile --resume", BAD_INPUT)
    return {role: _read(path) for role, path in files.items()}


def functions_table(role: str, profile: SampledProfile, top: int) -> Table:
    """The functions that took most of the time themselves."""
    table = Table(title=f"{role}, {profile.samples:,} looks at it", title_justify="left")
    table.add_column("function", overflow="fold")
    table.add_column("itself", justify="right")
    table.add_column("with what it calls", justify="right")
    for share in profile.functions[:top]:
        table.add_row(share.function, f"{share.own:.1%}", f"{share.together:.1%}")
    return table


def _read(path: Path) -> SampledProfile:
    own: Counter[str] = Counter()
    together: Counter[str] = Counter()
    for stack, count in _stacks(path):
        own[stack[-1]] += count
        together.update(dict.fromkeys(set(stack), count))
    total = max(1, own.total())
    functions = sorted(together, key=lambda name: (-own[name], -together[name], name))
    return SampledProfile(
        path,
        own.total(),
        tuple(FunctionShare(name, own[name] / total, together[name] / total) for name in functions),
    )


def _stacks(path: Path) -> Iterable[tuple[list[str], int]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        if not count.isdecimal():
            raise DeployError(f"{path} is damaged: {line[:80]!r} is no stack with a count; remove it", BAD_INPUT)
        yield stack.split(";"), int(count)

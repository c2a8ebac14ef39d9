"""Our replay server against Reverb and TorchRL: the same work, one run, sides in turn, the ratios as a table.

Run it on a quiet machine: `.venv/bin/python tests/benchmarks/replay/compare.py [--workload C] [--quick]`. The peers are
installed into environments of their own first, some gigabytes in the cache folder; set PIP_EXTRA_INDEX_URL to
https://download.pytorch.org/whl/cpu for a torch without CUDA. A peer that cannot be installed is left out.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from environments import PEERS, UnavailableError, environment_python
from rows import ROWS, UNITS, Contender, Part, Row
from sides import Figures, Request
from workloads import BATCH, CAPACITY, DISTINCT, SEED, STEPS, WINDOW, WORKLOADS, step_bytes

HERE = Path(__file__).parent
SCRIPTS = {"ours": "ours_side.py", "reverb": "reverb_side.py", "torchrl": "torchrl_side.py"}
PATIENCE_SECONDS = 180.0
# What our server and client do to the C allocator when they start; the peers gain from it too, or lose nothing.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str((2 << 30) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class SideError(Exception):
    """A side could not answer; one line that says why."""


class Process:
    """A side's process, spoken to in lines of JSON."""

    def __init__(self, python: Path, *arguments: str, log: IO[str]) -> None:
        self._process = subprocess.Popen(
            [str(python), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **ALLOCATOR},
        )

    @property
    def has_ended(self) -> bool:
        """Whether it was killed for not answering, or ended by itself."""
        return self._process.poll() is not None

    def tell(self, line: str) -> None:
        """Send one line; whether it arrived shows when the answer is heard."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def hear(self, seconds: float = PATIENCE_SECONDS) -> dict[str, object]:
        """The next answer.

        Raises:
            SideError: the process ended, does not answer, or answers that it failed.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._process.kill()
            self._process.wait()
            raise SideError(f"no answer within {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"the process ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def figures(self) -> list[Figures]:
        """The next answer, which holds figures."""
        figures = self.hear()["figures"]
        assert isinstance(figures, list)
        return [Figures(**part) for part in figures]

    def close(self) -> None:
        """End it by ending its stdin."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class Side:
    """One side with one workload: its servers and client processes, started when they are first needed."""

    name: str
    python: Path
    workload: str
    stack: ExitStack
    log: IO[str]
    servers: dict[int, str] = field(default_factory=dict)
    clients: dict[int, Process] = field(default_factory=dict)
    filled: set[tuple[str, int]] = field(default_factory=set)
    versions: str = ""

    def _start(self, *arguments: str) -> Process:
        process = Process(self.python, str(HERE / SCRIPTS[self.name]), *arguments, log=self.log)
        self.stack.callback(process.close)
        return process

    def client(self, number: int) -> Process:
        """A client process."""
        if number not in self.clients or self.clients[number].has_ended:
            process = self.clients[number] = self._start()
            versions = process.hear()["versions"]
            assert isinstance(versions, Mapping)
            self.versions = ", ".join(f"{name} {version}" for name, version in versions.items())
        return self.clients[number]

    def address(self, number: int) -> str:
        """Of a server; empty for a side without one."""
        if self.name == "torchrl":
            return ""
        if number not in self.servers:
            data_dir = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="zero-bench-"))
            arguments = ("serve", data_dir) if self.name == "ours" else (self.workload,)
            self.servers[number] = str(self._start(*arguments).hear()["address"])
        return self.servers[number]

    def measure(self, parts: Sequence[Part], seconds: float) -> list[Figures]:
        """Fill the tables, then let all parts begin together."""
        for part in parts:
            if (part.variant, part.server) not in self.filled:
                fill = Request("insert", self.workload, part.variant, self.address(part.server), units=CAPACITY)
                self._together({0: [fill]})
                self.filled.add((part.variant, part.server))
        requests: dict[int, list[Request]] = {}
        for part in parts:
            request = Request(
                part.measure,
                self.workload,
                part.variant,
                self.address(part.server),
                seconds,
                threads=part.threads,
                apart=part.apart,
                pace=part.pace,
            )
            requests.setdefault(part.process, []).append(request)
        answers = {number: iter(figures) for number, figures in self._together(requests).items()}
        return [next(answers[part.process]) for part in parts]

    def _together(self, requests: Mapping[int, Sequence[Request]]) -> dict[int, list[Figures]]:
        """By the client's number."""
        ready: dict[int, Process] = {}
        failures: list[SideError] = []
        processes = {number: self.client(number) for number in requests}
        for number, process in processes.items():
            process.tell(json.dumps([asdict(request) for request in requests[number]]))
        for number, process in processes.items():
            try:
                process.hear()
                ready[number] = process
            except SideError as error:
                failures.append(error)
        for process in ready.values():
            process.tell("")
        figures: dict[int, list[Figures]] = {}
        for number, process in ready.items():
            try:
                figures[number] = process.figures()
            except SideError as error:
                failures.append(error)
        if failures:  # only now: every process has answered and takes the next request
            raise failures[0]
        return figures


@dataclass(frozen=True)
class Result:
    """A contender's figures in one unit: medians of the rounds, or why there are none."""

    contender: Contender
    unit: str
    figures: Figures | None
    error: str = ""


def merged(figures: Sequence[Figures]) -> Figures:
    """What several processes did together: rates add up, the worst latency and the slowest thread count."""
    return Figures(
        sum(part.rate for part in figures),
        statistics.median(part.p50_ms for part in figures),
        max(part.p99_ms for part in figures),
        min(part.slowest for part in figures),
    )


def medians(rounds: Sequence[Figures]) -> Figures:
    return Figures(
        *(statistics.median(values) for values in zip(*(tuple(vars(part).values()) for part in rounds), strict=True))
    )


def compare(row: Row, sides: Mapping[str, Side], seconds: float, repeats: int) -> list[Result]:
    """Measure the row's contenders in turn, as often as is asked."""
    contenders = [contender for contender in row.contenders if contender.side in sides]
    rounds: dict[tuple[Contender, str], list[Figures]] = {}
    errors: dict[Contender, str] = {}
    for _, contender in itertools.product(range(repeats), contenders):
        if contender in errors:
            continue
        try:
            figures = sides[contender.side].measure(contender.parts, seconds)
        except SideError as error:
            errors[contender] = str(error)
            continue
        units = [UNITS[part.measure] for part in contender.parts]
        for unit in dict.fromkeys(units):
            together = merged([part for part, its in zip(figures, units, strict=True) if its == unit])
            rounds.setdefault((contender, unit), []).append(together)
    failed = [Result(contender, "", None, error) for contender, error in errors.items()]
    return failed + [
        Result(contender, unit, medians(done)) for (contender, unit), done in rounds.items() if contender not in errors
    ]


def print_row(row: Row, results: Sequence[Result]) -> None:
    print(f"\n{row.title}")
    for result in results:
        if result.figures is None:
            print(f"    {result.contender.side}: {result.contender.label}: failed: {result.error}")
    done = [result for result in results if result.figures is not None]
    for unit in dict.fromkeys(result.unit for result in done):
        block = [result for result in done if result.unit == unit]
        ours = [result.figures.rate for result in block if result.contender.side == "ours"]
        letters = "abcdefgh"[: len(ours)]
        theirs = any(result.contender.side != "ours" for result in block)
        heads = [f"{letter}/theirs" for letter in letters] if theirs else []
        print(
            f"  {'':<2}{unit:<62}{'median':>11}{'p50 ms':>9}{'p99 ms':>9}  " + "".join(f"{head:>10}" for head in heads)
        )
        names = iter(letters)
        for result in block:
            print(line(result, ours, next(names) if result.contender.side == "ours" else ""))


def numbers(figures: Figures) -> str:
    return f"{figures.rate:>11,.0f}{figures.p50_ms:>9.2f}{figures.p99_ms:>9.2f}"


def line(result: Result, ours: Sequence[float], letter: str) -> str:
    label = f"{result.contender.side}: {result.contender.label}"
    figures = result.figures
    ratios = "" if letter else "".join(f"{rate / figures.rate:>9.2f}x" for rate in ours)
    threads = any(part.apart for part in result.contender.parts)
    fairness = f"  slowest/median {figures.slowest:.2f}" if threads else ""
    return f"  {letter:<2}{label:<62}{numbers(figures)}  {ratios}{fairness}"


def print_restart(workload: str, trajectories: int, repeats: int, log: IO[str]) -> None:
    """How long our server takes to serve again after SIGKILL; the peers' memory is gone."""
    seconds, last = [], {}
    for _ in range(repeats):
        arguments = [sys.executable, str(HERE / "ours_side.py"), "restart", workload, str(trajectories)]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            print("\nrestart after kill -9: failed")
            return
        last = json.loads(done.stdout.splitlines()[-1])
        seconds.append(last["seconds"])
    print(
        f"\nrestart after kill -9: {last['trajectories']:,} trajectories served {statistics.median(seconds):.2f} s "
        f"after the start of the process, {last['lost']} acknowledged ones lost (in memory, as with the peers: all are)"
    )


def pythons(names: Sequence[str], cache: Path) -> dict[str, Path]:
    """The sides that can be measured."""
    found = {"ours": Path(sys.executable)}
    for name in names:
        try:
            found[name] = environment_python(PEERS[name], cache)
        except UnavailableError as error:
            print(f"{name} is left out: {error}")
    return found


@contextmanager
def started(interpreters: Mapping[str, Path], workload: str, log: IO[str]) -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        sides = {name: Side(name, python, workload, stack, log) for name, python in interpreters.items()}
        for name in list(sides):
            try:
                sides[name].client(0)
            except SideError as error:
                if name == "ours":
                    raise SystemExit(f"our side does not start: {error}; see {log.name}") from error
                print(f"{name} is left out: it does not start: {error}; see {log.name}")
                del sides[name]
        yield sides


def run(options: argparse.Namespace, workload: str, interpreters: Mapping[str, Path], log: IO[str]) -> None:
    print(
        f"\n== workload {workload}: {STEPS} steps of {step_bytes(workload)} bytes, windows of {WINDOW}, "
        f"batches of {BATCH}, prioritized, tables of {CAPACITY:,} trajectories =="
    )
    with started(interpreters, workload, log) as sides:
        for name, side in sides.items():
            print(f"{name}: {side.versions}")
        for row in ROWS:
            if options.rows is None or row.name in options.rows:
                print_row(row, compare(row, sides, options.seconds, options.repeats))
                sys.stdout.flush()
    if options.rows is None or "restart" in options.rows:
        print_restart(workload, options.restart_trajectories, options.repeats, log)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of which the median counts")
    parser.add_argument("--quick", action="store_true", help="1 second, 1 repeat, a restart of 1,600 trajectories")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="none for ours alone")
    parser.add_argument("--rows", nargs="+", choices=[*(row.name for row in ROWS), "restart"])
    parser.add_argument("--restart-trajectories", type=int, default=10_000, help="at most 100,000")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "zero-bench", help="for environments")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats, options.restart_trajectories = 1.0, 1, 100 * DISTINCT
    return options


def main() -> None:
    options = parse_options()
    options.cache.mkdir(parents=True, exist_ok=True)
    interpreters = pythons(options.peers, options.cache)
    print(
        f"seed {SEED}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"{options.seconds:g} s, medians of {options.repeats}, sides in turn"
    )
    with (options.cache / "sides.log").open("w") as log:
        for workload in WORKLOADS if options.workload == "all" else (options.workload,):
            run(options, workload, interpreters, log)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

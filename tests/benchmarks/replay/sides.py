"""How a side is driven: requests on stdin, answers on stdout, JSON line by line; needs the standard library alone.

A line holds the requests that a process works on at once. It opens their work, does a first step of each that warms
everything up, answers `{"ready": true}`, begins at the next line and answers with `{"figures": [...]}`. So several
processes, and sides in environments that share no package, begin together.
"""

import contextlib
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        measure: a name that the side knows.
        workload: a name out of workloads.WORKLOADS.
        variant: the side's own: a table, a storage, a way to write.
        address: of the server; empty for a side without one.
        seconds: how long.
        units: end after so many units, however long that takes; 0 to go by the time.
        threads: that do the same thing at once, each with what it opened itself.
        apart: every thread stands for a process and has a connection of its own.
        pace: units per second that all threads together start, whether earlier ones are done or not; 0 for flat out.
    """

    measure: str
    workload: str
    variant: str
    address: str = ""
    seconds: float = 0.0
    units: int = 0
    threads: int = 1
    apart: bool = False
    pace: float = 0.0


@dataclass(frozen=True)
class Figures:
    """What came out.

    Attributes:
        rate: units per second.
        p50_ms: median time of a step; with a pace, from the moment when it was due.
        p99_ms: 99th percentile.
        slowest: units of the slowest thread over those of the median one.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    slowest: float


class Work(NamedTuple):
    """One thread's share: `step` does some and returns its units, `finish` waits for what is still under way."""

    step: Callable[[], int]
    finish: Callable[[], object] = lambda: None


Opener = Callable[[Request], AbstractContextManager[Work]]


class _Share(NamedTuple):
    units: int
    seconds: float
    latencies: list[float]


def answer_requests(openers: Mapping[str, Opener], versions: Mapping[str, str]) -> None:
    """Answer the requests on stdin until it ends; the first line out says which versions were measured."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for answers

    def say(answer: Mapping[str, object]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"versions": dict(versions)})
    for line in sys.stdin:
        requests = [Request(**request) for request in json.loads(line)]
        try:
            figures = _measure(openers, requests, lambda: say({"ready": True}))
        except Exception as error:  # noqa: BLE001 -- told to whoever asked
            traceback.print_exc()
            say({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
        else:
            say({"figures": [asdict(part) for part in figures]})


def _measure(
    openers: Mapping[str, Opener], requests: Sequence[Request], say_ready: Callable[[], None]
) -> list[Figures]:
    gate = threading.Barrier(sum(request.threads for request in requests) + 1)
    shares: list[list[_Share]] = [[] for _ in requests]
    errors: list[Exception] = []

    def run(request: Request, shares_of_request: list[_Share]) -> None:
        try:
            with openers[request.measure](request) as work:
                work.step()
                gate.wait()  # all are warm
                gate.wait()  # begin
                shares_of_request.append(_run(work, request))
        except threading.BrokenBarrierError:
            pass
        except Exception as error:  # noqa: BLE001 -- raised below, in the thread that answers
            errors.append(error)
            gate.abort()

    threads = [
        threading.Thread(target=run, args=(request, shares_of_request))
        for request, shares_of_request in zip(requests, shares, strict=True)
        for _ in range(request.threads)
    ]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        gate.wait()
        say_ready()
        sys.stdin.readline()
        gate.wait()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [_figures(shares_of_request) for shares_of_request in shares]


def _run(work: Work, request: Request) -> _Share:
    started = time.perf_counter()
    until = started + request.seconds
    pace = request.pace / request.threads
    units, latencies = 0, list[float]()
    while True:
        now = time.perf_counter()
        if units >= request.units if request.units else now >= until:
            break
        began = started + units / pace if pace else now
        if began > now:
            time.sleep(min(began, until) - now)
            continue
        units += work.step()
        latencies.append(time.perf_counter() - began)
    work.finish()
    return _Share(units, time.perf_counter() - started, latencies)


def _figures(shares: list[_Share]) -> Figures:
    latencies = sorted(latency for share in shares for latency in share.latencies)
    done = [share.units for share in shares]
    return Figures(
        rate=sum(done) / max(share.seconds for share in shares),
        p50_ms=1e3 * latencies[len(latencies) // 2],
        p99_ms=1e3 * latencies[int(len(latencies) * 0.99)],
        slowest=min(done) / max(statistics.median(done), 1),
    )

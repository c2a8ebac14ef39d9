"""Tests of `zero replay` against real servers: what is shown, moved, changed and refused."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from rich.console import Console

from deploy.cli import main
from deploy.replay_commands import replay
from deploy.replay_views import server_view
from replay_server.answers import RecoveryProgress, ServerInfo
from replay_server.client import ReplayClient
from replay_server.credentials import SecuritySettings
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.certificates import Authority
from tests.replay_server.played import SIGNATURE, played, table_config
from tests.replay_server.test_trajectory_file import assert_same
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import ColumnSpec, Trajectory

Run = Callable[..., tuple[int, str, str]]

COMMANDS = {
    "info": [],
    "tables": [],
    "peek": ["games"],
    "export": ["games", "file"],
    "import": ["file"],
    "verify": ["games"],
    "reset": ["games", "--yes"],
    "delete": ["games", "--yes"],
    "limit": ["games", "--min-size=2"],
}
"""Every command, with what it needs."""


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[BoundAddresses]:
    """A server of the test's own."""
    with ReplayServer(ReplayServerSettings(tmp_path / "data")) as bound:
        yield bound


@pytest.fixture
def client(bound: BoundAddresses) -> Iterator[ReplayClient]:
    """Its client."""
    with ReplayClient(bound.address) as client:
        yield client


@pytest.fixture
def run(
    bound: BoundAddresses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Runs `zero replay` on that server in an empty folder; returns exit code, stdout and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ZERO_REPLAY_ADDRESS", bound.address)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zero", "replay", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run_main


def words(text: str) -> str:
    """Without the frames of tables, one space between words."""
    return " ".join(re.sub(r"[┃│━─┏┓┡┩└┘╇┴┳┬]", " ", text).split())


def test_json_says_what_the_tables_do(run: Run, client: ReplayClient) -> None:
    """info, tables, peek and verify print one document each, of the values that a client gets."""
    config = table_config("games")
    client.create_table(config)
    game = played(1, 9)
    client.insert("games", [game])

    def told(*arguments: str) -> Any:
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    info = told("info")
    assert info["address"] == client.address
    assert info["server"]["tables"]["games"]["num_steps"] == 9
    (shown,) = told("tables")
    assert (shown["name"], shown["capacity"], shown["durability"]) == ("games", config.capacity, "redis")
    assert [column["name"] for column in shown["signature"]] == [spec.name for spec in SIGNATURE]
    peeked = told("peek", "games")
    assert peeked["trajectory_id"] == game.trajectory_id
    assert np.array_equal(np.asarray(peeked["columns"]["reward"], np.float32), game.columns["reward"])
    assert told("verify", "games")["problems"] == []


def by_columns(out: str) -> list[str]:
    """The rows of the one table in a text, each read cell by cell."""
    (table,) = re.findall(r"┡.*?\n(.*?)└", out, flags=re.DOTALL)
    rows = [[line.split("│")[1:-1] for line in row.strip().splitlines()] for row in re.split(r"├.*┤", table)]
    return [words(" ".join(" ".join(cell) for cell in zip(*row, strict=True))) for row in rows]


def stored(client: ReplayClient, table: str) -> list[Trajectory]:
    """All trajectories of a table."""
    return list(client.read_trajectories(table))


def test_info_shows_sizes_durability_and_why_calls_wait(run: Run, client: ReplayClient) -> None:
    """Everything that GetServerInfo tells, in one view."""
    code, out, _ = run("info")
    assert (code, "no tables yet" in out) == (0, True)
    client.create_table(table_config("games", rate_limiter=RateLimiterConfig(8, 4.0, 40.0)))
    client.create_table(TableConfig.queue("queue", SIGNATURE, 1, 70))
    client.insert("games", [played(1, 9)])
    client.insert("queue", [played(1, 7)])
    client.sample("games", 12, {"reward": 1})
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(client.sample, "games", 40, {"reward": 1})
        while "1 samples: they ask for more than may pass now" not in by_columns(run("info")[1])[0]:
            assert not waiting.done()
        client.insert("games", [played(n, 2) for n in (2, 3)])
        assert len(waiting.result(timeout=20).keys) == 40
    out = run("info")[1]
    shown = words(out)
    assert f"replay server {client.address}" in shown
    assert "Redis flushes at once: an acknowledged insert survives a power cut" in shown
    assert re.search(r"in flight [\d.]+ B of 256 MiB", shown)
    games, queue = by_columns(out)
    assert re.match(r"games 13 of 1,000 steps 3 trajectories 13 items [\d.]+ KiB, durability redis 13 steps in", games)
    assert games.endswith("13 steps in 52 drawn 13 of 4 per insert 0 removed")
    assert re.match(r"queue 7 of 70 steps 1 trajectory 1 items [\d.]+ KiB, durability redis 7 steps in 0 drawn", queue)
    assert "inserts would wait: the queue is full" in queue


def test_info_shows_how_far_a_recovery_is() -> None:
    """Tables are not known yet then."""
    info = ServerInfo({}, 0, "everysec", RecoveryProgress("games", 1500, 6000), 0, 256 << 20)
    console = Console(file=io.StringIO(), width=100)
    console.print(server_view("host:1", info))
    shown = words(console.file.getvalue())
    assert "recovery 25%: 1,500 of 6,000 entries, table games" in shown
    assert "every second: a power cut may cost the last one" in shown
    console.print(server_view("host:1", replace(info, recovery=RecoveryProgress("", 0, 0))))
    assert "recovery waiting for Redis" in words(console.file.getvalue())


def test_info_promises_nothing_while_redis_is_away() -> None:
    """It says why instead of how soon an insert is safe."""
    console = Console(file=io.StringIO(), width=100)
    console.print(server_view("host:1", ServerInfo({}, 0, "always", None, 0, 256 << 20, "it is\x1b gone")))
    shown = words(console.file.getvalue())
    assert r"Redis is away, durable inserts wait or fail: it is\x1b gone" in shown
    assert "survives" not in shown


def test_tables_shows_what_they_are(run: Run, client: ReplayClient) -> None:
    """Signature, strategies, sequences, limits; limits that were changed beside those of the creation."""
    signature = (ColumnSpec("x", "float32", (3, 2), minimum=-1.0, maximum=2.5), ColumnSpec("y", "int8", maximum=9.0))
    client.create_table(
        table_config("games", signature=signature, selector="prioritized", remover="random", max_times_sampled=2)
    )
    client.create_table(TableConfig.queue("queue", SIGNATURE, 5, 70))
    client.set_rate_limiter("games", RateLimiterConfig(3, 2.0, 10.0))
    code, out, _ = run("tables")
    shown = words(out)
    assert code == 0
    assert "drawn prioritized ^ 0.6 removed random makes room; an item goes after 2 draws" in shown
    assert "limits samples from 3 items on; 2 samples per insert, 10 more or fewer" in shown
    assert "created with: samples from 1 items on" in shown
    assert "x float32 [3, 2] -1 to 2.5 y int8 [] to 9" in shown
    assert "table queue capacity 70 steps" in shown
    assert "items complete trajectories; sequences are zero beyond the end" in shown


def test_peek_shows_the_newest_or_the_one_asked_for(run: Run, client: ReplayClient) -> None:
    """Who played it, its stats, the ranges of its columns, its first steps."""
    client.create_table(table_config("games"))
    assert run("peek", "games")[2] == "error: table 'games' is empty\n"
    client.insert("games", [played(n, 7) for n in (3, 8, 5)])
    code, newest, _ = run("peek", "games")
    assert code == 0
    assert "trajectory t5 actor actor-0 weights 5 episode seed 5 steps 7, terminated" in words(newest)
    shown = words(run("peek", "games", "t8")[1])
    assert "num_moves 7 score 8" in shown
    assert "action uint16 [7] 1 4 7" in shown
    assert "reward float32 [7] 8 8.003 8.006" in shown
    rows = [" ".join(map(str, row)) for row in played(8, 7).columns["observation"][4].tolist()]
    assert f"4 [[{rows[0]}] [{rows[1]}]] 5 8.004 [" in shown.replace(",", "")
    assert "6 8.005" not in shown, "the first five"
    assert run("peek", "games", "t9") == (2, "", "error: table 'games' holds no trajectory 't9'\n")


def test_what_others_have_named_is_shown_as_it_is(run: Run, client: ReplayClient) -> None:
    """Not as markup; commands to the terminal no server takes in an id."""
    client.create_table(table_config("games", signature=(ColumnSpec("[/x]", "int8"),)))
    named = replace(
        played(1),
        trajectory_id="[bold]",
        actor_id=":smile:",
        stats={"[/b]": 1.0},
        columns={"[/x]": np.ones(2, np.int8)},
    )
    client.insert("games", [named])
    code, out, _ = run("peek", "games")
    assert code == 0
    assert "trajectory [bold] actor :smile: " in words(out)
    assert "[/b] 1 " in words(out)
    assert "[/x] int8 []" in words(run("tables")[1])


def chunks_of_a_long_trajectory() -> list[Trajectory]:
    """Two of 6 MiB each: together more than fits into a message."""
    frames = np.arange(12 << 17, dtype=np.float64).reshape(12, 1 << 17)
    return [
        replace(
            played(1),
            columns={"frame": frames[start : start + 6]},
            priorities=np.arange(start, start + 6, dtype=np.float32),
            first_step=start,
            open=start == 0,
            terminated=start == 6,
        )
        for start in (0, 6)
    ]


def test_a_trajectory_that_was_inserted_in_chunks_is_one(run: Run, client: ReplayClient) -> None:
    """However it is read: looked at whole, exported and imported bit by bit."""
    signature = (ColumnSpec("frame", "float64", (1 << 17,)),)
    client.create_table(table_config("games", signature=signature, capacity=20, selector="prioritized"))
    first, last = chunks_of_a_long_trajectory()
    client.insert("games", [first])
    assert "steps 6, still being played" in words(run("peek", "games")[1])
    client.insert("games", [last])
    assert len(stored(client, "games")) == 2, "it is read in parts"
    for arguments in ([], ["t1"]):
        shown = words(run("peek", "games", *arguments)[1])
        assert "steps 12, terminated" in shown
        assert f"frame float64 [12, 131072] 0 786432 {(12 << 17) - 1:.6g}" in shown
        assert "(priority) float32 [12] 0 5.5 11" in shown
    assert run("export", "games", "file")[0] == 0
    assert run("import", "file", "copy")[0] == 0
    assert client.server_info().tables["copy"].num_trajectories == 1
    for got, expected in zip(stored(client, "copy"), stored(client, "games"), strict=True):
        assert_same(got, expected)


def test_export_and_import_keep_every_bit(run: Run, client: ReplayClient) -> None:
    """Also under another name, as a table with the same config; again, nothing is stored twice."""
    config = table_config("games", selector="prioritized", capacity=50_000)
    client.create_table(config)
    client.insert("games", [played(n, 1 + n % 9) for n in range(500)])
    assert run("export", "games", "file")[1].startswith("file: 500 trajectories of table games, ")
    assert run("import", "file", "copy")[:2] == (0, "table copy: 500 trajectories stored, 0 were known already\n")
    assert client.server_info().tables["copy"].config == replace(config, name="copy")
    for got, expected in zip(stored(client, "copy"), stored(client, "games"), strict=True):
        assert_same(got, expected)
    assert run("import", "file", "copy")[1] == "table copy: 0 trajectories stored, 500 were known already\n"
    client.delete_table("games")
    assert run("import", "file")[1] == "table games: 500 trajectories stored, 0 were known already\n"


def test_an_import_goes_on_where_it_was_interrupted(run: Run, client: ReplayClient) -> None:
    """What a first attempt has stored is not stored again, the rest is."""
    client.create_table(table_config("games"))
    client.insert("games", [played(n) for n in range(20)])
    run("export", "games", "file")
    client.create_table(table_config("other"))
    client.insert("other", stored(client, "games")[:7])
    assert run("import", "file", "other")[1] == "table other: 13 trajectories stored, 7 were known already\n"
    assert client.server_info().tables["other"].num_trajectories == 20


def test_an_import_changes_nothing_where_it_does_not_fit(run: Run, client: ReplayClient) -> None:
    """A damaged file with its place, a table of other columns with their names, known ids with other content."""
    client.create_table(table_config("games"))
    client.insert("games", [played(n) for n in range(20)])
    run("export", "games", "file")
    data = bytearray(Path("file").read_bytes())
    data[-100] ^= 1
    Path("damaged").write_bytes(data)
    code, _, err = run("import", "damaged", "new")
    assert (code, "damaged is damaged at byte " in err) == (2, True)
    assert list(client.server_info().tables) == ["games"]
    client.create_table(table_config("narrow", signature=SIGNATURE[:3]))
    code, _, err = run("import", "file", "narrow")
    assert (code, "other columns than the file: policy" in err) == (2, True)
    client.create_table(table_config("known"))
    client.insert("known", [replace(played(3), actor_id="somebody else")])
    code, _, err = run("import", "file", "known")
    assert (code, "CONTENT_CONFLICT: trajectory 't3' is known with other content" in err) == (2, True)
    assert client.server_info().tables["known"].num_trajectories == 1
    assert run("import", "file", "NO NAME")[0] == 2


def test_an_import_passes_a_rate_limiter_step_by_step(run: Run, client: ReplayClient) -> None:
    """Trajectories go one by one where a large insert could never pass."""
    client.create_table(table_config("games"))
    client.insert("games", [played(n) for n in range(4)])
    run("export", "games", "file")
    client.create_table(TableConfig.queue("queue", SIGNATURE, 2, 1000))
    with ThreadPoolExecutor(1) as executor:
        taken = executor.submit(lambda: [client.sample("queue", 1, {"reward": 1}) for _ in range(4)])
        assert run("import", "file", "queue")[1] == "table queue: 4 trajectories stored, 0 were known already\n"
        assert [int(batch.columns["reward"][0, 0]) for batch in taken.result(timeout=20)] == [0, 1, 2, 3]


def test_an_export_leaves_out_what_has_lost_its_beginning(run: Run, client: ReplayClient) -> None:
    """A later chunk alone could not be imported; it is named. The rest is there."""
    client.create_table(table_config("games", capacity=10))
    chunk = replace(played(1, 6), open=True, terminated=False)
    client.insert("games", [chunk])
    client.insert("games", [played(2, 6)])  # the chunk makes room
    client.insert("games", [replace(chunk, first_step=6, columns={n: c[:3] for n, c in chunk.columns.items()})])
    assert [one.first_step for one in stored(client, "games")] == [0, 6]
    code, out, _ = run("export", "games", "file")
    assert (code, out.count("1 trajectories")) == (0, 1)
    assert "left out, since their first steps are no longer stored: t1" in out
    assert run("import", "file", "copy")[:2] == (0, "table copy: 1 trajectories stored, 0 were known already\n")


def test_verify_finds_what_the_log_has_lost(run: Run, client: ReplayClient, tmp_path: Path) -> None:
    """A sound table has no problems; one whose log lacks an entry ends the command with exit code 1."""
    client.create_table(table_config("games"))
    client.create_table(table_config("memory", durability=Durability.MEMORY))
    for n in range(3):
        client.insert("games", [played(n)])
    code, out, _ = run("verify", "games")
    assert code == 0
    assert re.fullmatch(r"3 entries with 3 trajectories and chunks, [\d,]+ bytes\nno problems\n", out)
    assert "no log" in run("verify", "memory")[1]
    store = redis.Redis(unix_socket_path=str(tmp_path / "data/redis/redis.sock"))
    (stream,) = (key for key in store.scan_iter() if store.type(key) == b"stream")
    (entry, _), *_ = store.xrange(stream, count=1)
    store.xdel(stream, entry)
    store.close()
    code, out, err = run("verify", "games")
    assert code == 1
    assert re.fullmatch(r"error: table 'games' has \d+ problems\n", err)
    assert len(out.splitlines()) == 1 + int(re.findall(r"\d+", err)[0])


@pytest.mark.parametrize("command", ["reset", "delete"])
def test_what_deletes_asks_first(run: Run, client: ReplayClient, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """In a terminal by saying what would go; elsewhere --yes is needed."""

    class Terminal(io.StringIO):
        """Somebody is there."""

        def isatty(self) -> bool:
            """Yes."""
            return True

    client.create_table(table_config("games"))
    client.insert("games", [played(1)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(command, "games")[::2] == (2, "error: nobody is there to confirm it: give --yes\n")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, out, err = run(command, "games")
    assert (code, err) == (1, "error: nothing was deleted\n")
    assert "Delete 1 trajectories with 5 steps of table games" in out
    assert client.server_info().tables["games"].num_trajectories == 1
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert run(command, "games")[0] == 0
    tables = client.server_info().tables
    assert "games" not in tables or tables["games"].num_trajectories == 0
    assert ("games" in tables) == (command == "reset")


def test_yes_needs_nobody(run: Run, client: ReplayClient) -> None:
    """--yes, for scripts."""
    client.create_table(table_config("games"))
    client.insert("games", [played(1)])
    assert run("reset", "games", "--yes")[1] == "table games is empty; 1 trajectories were deleted\n"
    assert run("delete", "games", "-y")[1] == "table games is deleted\n"
    assert client.server_info().tables == {}


def test_limit_changes_what_is_given_at_once(run: Run, client: ReplayClient) -> None:
    """The other limits stay, a waiting call passes, what cannot work is refused."""
    client.create_table(table_config("games", rate_limiter=RateLimiterConfig(100, 2.0, 50.0)))
    client.insert("games", [played(1)])
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(client.sample, "games", 4, {"reward": 1})
        code, out, _ = run("limit", "games", "--min-size", "5")
        assert (code, out) == (0, "table games: samples from 5 items on; 2 samples per insert, 50 more or fewer\n")
        assert len(waiting.result(timeout=20).keys) == 4
    run("limit", "games", "--samples-per-insert", "0", "--queue-size", "500", "--error-buffer=7")
    assert client.server_info().tables["games"].rate_limiter.config == RateLimiterConfig(5, 0.0, 7.0, 500)
    for arguments, expected in (
        ([], "give at least one limit"),
        (["--queue-size=2000"], "--queue-size 2000 exceeds capacity 1000"),
        (["--samples-per-insert=8"], "--error-buffer is 7.0, must be finite and at least max(1, --samples-per-insert)"),
        (["--samples-per-insert=nan"], "--samples-per-insert is nan, must be finite"),
        (["--min-size=0"], "--min-size is 0, must be at least 1"),
    ):
        code, out, err = run("limit", "games", *arguments)
        assert (code, out, expected in err, err.count("\n")) == (2, "", True, 1), err
    assert client.server_info().tables["games"].rate_limiter.config == RateLimiterConfig(5, 0.0, 7.0, 500)


def test_every_command_is_known_here() -> None:
    """None is left out below."""
    assert [command.name for command in replay.registered_commands] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    """In one line of at most 70 characters in the list; with an example and how to reach a guarded server."""
    code, out, _ = run("--help")
    (line,) = re.findall(rf"│ {command} +(\S.*\S) +│", out)
    assert code == 0
    assert line.endswith(".")
    assert out.count("\n│") == len(COMMANDS) + 1, "one line each"
    _, out, _ = run(command, "--help")
    assert f"zero replay {command}" in out
    for option in ("--replay-address", "--tls-ca", "--tls-certificate", "--tls-key", "--token-file", "--insecure"):
        assert option in out


@pytest.mark.parametrize("command", [name for name, arguments in COMMANDS.items() if "games" in arguments])
def test_an_unknown_table_is_bad_input(run: Run, client: ReplayClient, command: str) -> None:
    """One line that names those that there are."""
    client.create_table(table_config("other"))
    expected = "error: no table 'games'; there are: other\n"
    assert run(command, *COMMANDS[command]) == (2, "", expected)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_guarded_server_lets_in_who_may(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """Every command works with CA and token, and ends in one line without the token."""
    authority = Authority(tmp_path)
    pair = authority.issue()
    (tmp_path / "tokens").write_text("operator:0123456789abcdef\n")
    security = SecuritySettings(pair.certificate_file, pair.key_file, token_file=tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    with ReplayServer(ReplayServerSettings(tmp_path / "data", security=security)) as bound:
        options = [f"--replay-address={bound.address}", f"--tls-ca={authority.file}"]
        for token, expected in (["--token-file=tokens"], 0), ([], 2):
            for name, arguments in (("import", ["file"]), (command, COMMANDS[command])):
                if name == "import":
                    prepare_file(tmp_path / "file")
                if name == "export":
                    (tmp_path / "file").unlink()
                monkeypatch.setattr(sys, "argv", ["zero", "replay", name, *arguments, *options, *token])
                with pytest.raises(SystemExit) as caught:
                    main()
                captured = capsys.readouterr()
                assert int(caught.value.code or 0) == expected, captured.err
                assert captured.err.count("\n") == (1 if expected else 0)
                assert ("UNAUTHENTICATED" in captured.err) == bool(expected)


def prepare_file(path: Path) -> None:
    """A file with one trajectory of a table `games`."""
    from replay_server.trajectory_file import write_trajectory_file  # noqa: PLC0415

    path.unlink(missing_ok=True)
    write_trajectory_file(path, table_config("games"), [played(1)])


def test_a_server_that_is_not_there_is_a_failure(run: Run) -> None:
    """Exit code 1 and one line that names the address, soon."""
    code, out, err = run("info", "--replay-address=127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.startswith("error: replay server 127.0.0.1:1: UNAVAILABLE: ")
    assert err.count("\n") == 1
    code, _, err = run("info", "--replay-address=nowhere")
    assert (code, "write it as host:port" in err) == (2, True)

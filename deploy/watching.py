"""What the page of `zero watch` is told of a run: from its folder, and the newest games from its replay server."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.errors import DeployError
from deploy.fleet_record import FleetRecord
from deploy.game_files import register_game_file
from deploy.http_reply import BAD_REQUEST, NOT_FOUND, OK, Reply, json_reply, refusal
from deploy.run_folder import RunFolder
from deploy.runs_views import summary
from replay_server.answers import ReplayError
from replay_server.client import ReplayClient
from replay_server.credentials import Credentials, CredentialsError
from zero.games.registry import make_game
from zero.self_play_table import TABLE_NAME
from zero.trajectories import Trajectory

PAGE = Path(__file__).parent / "watch_page" / "index.html"
MAX_BOARDS = 12
GAMES_READ = 100
"""So many of the newest games are looked through for one of every actor."""
MAX_FIGURES_BYTES = 4 * 2**20
REQUEST_SECONDS = 3.0


@dataclass(frozen=True)
class Board:
    """The end of the newest game of an actor.

    Attributes:
        actor: who played it.
        score: of the game.
        num_steps: that it took.
        weights_version: that it began with.
        svg: the position before its last move.
    """

    actor: str
    score: float
    num_steps: int
    weights_version: int
    svg: str


class RunPage:
    """Answers the requests of the page, for any number of threads; a context manager.

    Args:
        folder: of the run.
        credentials: for its replay server.

    Raises:
        DeployError: the folder holds no intact run, or its game cannot be built.
    """

    def __init__(self, folder: RunFolder, credentials: Credentials) -> None:
        config = folder.config()
        register_game_file(config)
        self._folder = folder
        self._credentials = credentials
        self._game = make_game(config.game.name, config.game.options)
        self._capacity = config.replay.capacity
        self._lock = threading.Lock()
        self._client: ReplayClient | None = None  # guarded by the lock

    def reply(self, path: str, query: Mapping[str, str]) -> Reply:
        """The response to a GET of a path with a query."""
        if path == "/":
            return Reply(OK, PAGE.read_bytes(), "text/html; charset=utf-8")
        try:
            match path:
                case "/state":
                    return json_reply(self._state())
                case "/figures":
                    return json_reply(self._figures(int(query.get("from", "0"))))
                case "/boards":
                    return json_reply(self._boards())
                case _:
                    return refusal(NOT_FOUND, "there is no such page")
        except (DeployError, ValueError) as error:
            return refusal(BAD_REQUEST, str(error))

    def _state(self) -> dict[str, Any]:
        """What the run is, and how far it and its roles are; these only while it goes on."""
        fleet = self._fleet()
        roles, bounds = [], {}
        if fleet is not None:
            roles = [role.model_dump(mode="json") for role in fleet.roles]
            bounds = fleet.model_dump(mode="json", include={"elapsed_seconds", "total_seconds", "max_steps"})
            bounds["capacity"] = self._capacity
        return summary(self._folder, self._folder.record()) | {"roles": roles, "bounds": bounds}

    def _figures(self, start: int) -> dict[str, Any]:
        """Figures over time from a byte on, and from which byte to ask for more."""
        if start < 0:
            raise ValueError(f"from is {start}, must not be negative")
        try:
            with self._folder.metrics_file.open("rb") as file:
                file.seek(start)
                found = file.read(MAX_FIGURES_BYTES)
        except FileNotFoundError:
            found = b""
        whole = found[: found.rfind(b"\n") + 1]  # the last line may still be being written
        return {"next": start + len(whole), "rows": [json.loads(line) for line in whole.splitlines()]}

    def _boards(self) -> dict[str, Any]:
        """The newest game of every actor, or why there is none."""
        fleet = self._fleet()
        if fleet is None:
            return {"boards": [], "why": "nobody plays: the run is not going on"}
        try:
            newest: dict[str, Trajectory] = {}
            with self._lock:
                games = self._client_of(fleet.replay_address).read_trajectories(
                    TABLE_NAME, limit=GAMES_READ, timeout=REQUEST_SECONDS, newest_first=True
                )
                for game in games:
                    newest.setdefault(game.actor_id, game)
        except (ReplayError, CredentialsError) as error:
            return {"boards": [], "why": f"replay server {fleet.replay_address}: {error}"}
        return {"boards": [asdict(self._board(newest[actor])) for actor in sorted(newest)[:MAX_BOARDS]]}

    def _board(self, game: Trajectory) -> Board:
        states = self._game.decode(game.columns["observation"][-1:])
        score = game.stats.get("score", 0.0)
        return Board(game.actor_id, score, game.num_steps, game.weights_version, self._game.render_svg(states))

    def _fleet(self) -> FleetRecord | None:
        """How the fleet stands, if the run goes on."""
        if not self._folder.is_in_use():
            return None
        try:
            return FleetRecord.read(self._folder.fleet_file)
        except FileNotFoundError:
            return None

    def _client_of(self, address: str) -> ReplayClient:
        if self._client is None or self._client.address != address:
            self._close()
            self._client = ReplayClient(address, client_name="zero watch", credentials=self._credentials)
        return self._client

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._close()

"""Writes every dashboard as JSON for Grafana's file provisioning: `python -m deploy.grafana`."""

from pathlib import Path

from deploy.grafana.board import to_json
from deploy.grafana.cluster_boards import CLUSTER
from deploy.grafana.inference_board import INFERENCE
from deploy.grafana.run_boards import ACTORS, LEARNER, OVERVIEW
from deploy.grafana.server_boards import CALLS, REPLAY

BOARDS = (OVERVIEW, REPLAY, LEARNER, ACTORS, INFERENCE, CALLS, CLUSTER)
FOLDER = Path(__file__).with_name("dashboards")


def write(folder: Path = FOLDER) -> None:
    """One file for each dashboard, named after it."""
    for board in BOARDS:
        (folder / f"{board.name}.json").write_text(to_json(board), encoding="utf-8")


if __name__ == "__main__":
    write()

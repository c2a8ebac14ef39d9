"""What the README shows works as it stands."""

import re
from pathlib import Path

from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path) -> None:
    """The example stores its episode and draws from it, on a server that differs by its port alone."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    with ReplayServer(ReplayServerSettings(tmp_path)) as bound:
        exec(compile(example.replace("127.0.0.1:8470", bound.address), "README.md", "exec"), {})
        with ReplayClient(bound.address) as client:
            table = client.server_info().tables["steps"]
    assert (table.num_trajectories, table.num_steps, table.sampled_positions) == (1, 40, 256)


def test_links_lead_somewhere() -> None:
    """Every relative link names a file or folder of the project."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []

"""Runs a real Prometheus with our config over what a test has started."""

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.integration.processes import free_port

FOLDER = Path(__file__).parents[2] / "deploy/prometheus"
SECONDS_PER_MINUTE = 2
"""Alerts wait for minutes: in tests a minute of theirs takes so long."""


def hurried(rules: str) -> str:
    """Alert rules whose minutes and hours pass faster."""
    rules = re.sub(r"\b(\d+)h\b", lambda match: f"{60 * int(match[1])}m", rules)
    rules = re.sub(r"\b(\d+)m\b", lambda match: f"{SECONDS_PER_MINUTE * int(match[1])}s", rules)
    return rules.replace("* 60", f"* {SECONDS_PER_MINUTE}")


class Prometheus:
    """Our config and our alert rules, scraping every second.

    Args:
        folder: for its data.
        runs: where the replay server of each job lists its processes, host:port.
        ray_list: the file in which Ray lists where it serves its metrics.
    """

    def __init__(self, folder: Path, runs: Mapping[str, str], ray_list: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys(config["global"], "1s")
        zero, ray = config["scrape_configs"]
        assert zero["http_sd_configs"][0]["url"] == "http://127.0.0.1:9470/sd"
        ray["scrape_interval"] = "4s"  # its pages are long
        assert ray["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
        ray["file_sd_configs"] = [{"files": [str(ray_list)], "refresh_interval": "1s"}]
        config["scrape_configs"] = [
            ray,
            *(
                {"job_name": job, "http_sd_configs": [{"url": f"http://{address}/sd", "refresh_interval": "1s"}]}
                for job, address in runs.items()
            ),
        ]
        for name in config["rule_files"]:
            (folder / name).write_text(hurried((FOLDER / name).read_text()))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._stack = ExitStack()
        log = self._stack.enter_context((folder / "prometheus.log").open("wb"))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)

    def values(self, query: str) -> dict[str, float]:
        """The newest value of every series of an expression, by its labels as text; empty while it does not answer."""
        answer = self.ask("/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        result = answer["data"]["result"] if answer else []
        return {json.dumps(series["metric"], sort_keys=True): float(series["value"][1]) for series in result}

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, with labels and the last error."""
        answer = self.ask("/api/v1/targets")
        return answer["data"]["activeTargets"] if answer else []

    def firing(self) -> dict[str, dict[str, str]]:
        """Labels and annotations of the alerts that fire, by name; of several of one name, one."""
        answer = self.ask("/api/v1/alerts")
        alerts = answer["data"]["alerts"] if answer else []
        return {
            alert["labels"]["alertname"]: alert["labels"] | alert["annotations"]
            for alert in alerts
            if alert["state"] == "firing"
        }

    def ask(self, path: str) -> Any:
        """Its JSON; None while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as response:
                return json.load(response)
        except OSError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

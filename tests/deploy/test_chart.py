"""Tests of the chart: it renders what is committed, valid and safe, and refuses wrong values in one line."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import redis
import yaml

from deploy import cli
from replay_server.embedded_redis import find_redis_server
from tests.deploy.helm import (
    CHART,
    KUBERAY,
    PROMETHEUS_OPERATOR,
    FakeCluster,
    Release,
    example,
    install,
    render_examples,
)
from tests.integration.processes import free_port, wait_until

OLDEST, NEWEST = "1.31", "1.34"
RENDERED = sorted((CHART / "rendered").glob("*.yaml"))
COMMANDS = {
    "actor": ["actor"],
    "evaluator": ["evaluate"],
    "learner": ["learner"],
    "ray-actors": [],
    "ray-head": ["train"],
    "reanalyser": ["reanalyser"],
    "redis": [],
    "replay-server": ["replay-server"],
    "serve": ["serve"],
    "statistics": ["statistics", "run"],
}
"""What containers run of ours."""
SECRETS = ["zero-redis", "zero-tls", "zero-tokens"]


def schemas() -> Path | None:
    """Strict schemas of the kinds of operators: where ZERO_SCHEMAS says, or beside a checkout."""
    places = [Path(os.environ["ZERO_SCHEMAS"])] if "ZERO_SCHEMAS" in os.environ else []
    places += [parent / "shared/schemas" for parent in CHART.parents]
    return next((place for place in places if place.is_dir()), None)


def objects(text: str) -> list[dict[str, Any]]:
    """Of a manifest."""
    return [found for found in yaml.safe_load_all(text) if found]


def pods(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and specifications of what a manifest runs."""
    for name, template in templates(objects(text)):
        yield name, template["spec"]


def templates(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and templates of all pods."""
    for one in found:
        if one["kind"] in {"Deployment", "StatefulSet"}:
            yield one["metadata"]["name"], one["spec"]["template"]
        elif one["kind"] == "RayCluster":
            yield "ray-head", one["spec"]["headGroupSpec"]["template"]
            yield from ((group["groupName"], group["template"]) for group in one["spec"]["workerGroupSpecs"])


def test_the_committed_renders_are_those_of_the_chart() -> None:
    """Of every example; otherwise run `python -m tests.deploy.helm`."""
    committed = {path.name: path.read_text() for path in RENDERED}
    assert render_examples() == committed
    assert len(committed) == 4


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_every_object_is_valid(path: Path) -> None:
    """By Kubernetes' own schemas, unknown fields refused, and by those of the operators where they are."""
    folder = schemas()
    for found in objects(path.read_text()):
        group, _, version = found["apiVersion"].partition("/")
        if group in {"monitoring.coreos.com", "ray.io"}:
            if folder is not None:
                schema = (folder / f"{group}_{found['kind']}_{version}.json").read_text()
                jsonschema.validate(found, json.loads(schema.replace("^(?i)", "(?i)^")))  # as Python writes it
        else:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_every_pod_is_restricted(path: Path) -> None:
    """As the restricted Pod Security Standard asks, with a root that cannot be written and bounded memory."""
    names = []
    for name, pod in pods(path.read_text()):
        names.append(name)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["terminationGracePeriodSeconds"] >= 60
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert {"livenessProbe", "startupProbe"} <= container.keys()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            given = {volume["name"] for volume in pod["volumes"]} | {"data"}
            assert mounted <= given
    assert names


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_everything_is_selected_by_its_own_policies(path: Path) -> None:
    """All pods are denied what is not allowed; every policy, budget and service selects pods that there are."""
    found = objects(path.read_text())
    labels = [template["metadata"]["labels"] for _, template in templates(found)]
    for one in found:
        selector = one["spec"].get("podSelector") if one["kind"] == "NetworkPolicy" else None
        selector = selector or (one["spec"]["selector"] if one["kind"] == "PodDisruptionBudget" else None)
        if selector is not None:
            selected = [pod for pod in labels if selector["matchLabels"].items() <= pod.items()]
            assert selected, one["metadata"]["name"]
            if one["metadata"]["name"] == "zero-default-deny":
                assert selected == labels
                assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
                assert one["spec"].keys() == {"podSelector", "policyTypes"}


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_every_setting_is_one_that_the_commands_read(path: Path) -> None:
    """Each variable ZERO_... is the environment variable of an option of the command that the container runs."""
    for container in (found for _, pod in pods(path.read_text()) for found in pod["containers"]):
        command: Any = cli.typer.main.get_command(cli.app)
        for name in COMMANDS[container["name"]]:
            command = command.commands[name]
        given = {variable["name"] for variable in container.get("env", ()) if variable["name"].startswith("ZERO_")}
        used = {name for name in given if f"$({name})" in " ".join(container.get("args", ()))}
        assert given - used <= {parameter.envvar for parameter in command.params}
        assert bool(given) == bool(COMMANDS[container["name"]])


def changed(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Values with another one at `section.key`."""
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return values


REFUSED = {
    "unknown value": ("cluster", "learner.gpu", 1, "gpu"),
    "unknown section": ("cluster", "served", {}, "served"),
    "wrong type": ("cluster", "actors.replicas", "many", "/actors/replicas"),
    "negative": ("cluster", "actors.replicas", -1, "/actors/replicas"),
    "unknown experiment": ("cluster", "experiment.name", "chess", "/experiment/name"),
    "override without value": ("cluster", "experiment.overrides", ["search"], "/experiment/overrides/0"),
    "cut digest": ("cluster", "images", {"roles": {"repository": "zero", "tag": "1", "digest": "sha256:12"}}, "digest"),
    "unknown Redis": ("cluster", "redis.kind", "sentinel", "/redis/kind"),
    "no token": ("cluster", "security.tokenSecret", "", "tokenSecret"),
    "no password": ("cluster", "redis.passwordSecret", "", "kubectl create secret"),
    "no URL": ("replay-only", "redis.urlSecret", "", "kubectl create secret"),
    "roles beside shards": ("replay-only", "actors.replicas", 2, "use one server"),
    "shards in a Ray cluster": ("ray", "replayServer.shards", 2, "use one server"),
    "no learner in a Ray cluster": ("ray", "learner.enabled", False, "in a Ray cluster has a learner"),
    "more machines than may be": ("ray", "ray.minMachines", 33, "above ray.maxMachines (32)"),
    "statistics twice": ("ray", "statistics.enabled", True, "by a run in a Ray cluster anyhow"),
    "a serve without a run": ("replay-only", "serve.enabled", True, "there is no learner"),
    "best weights elsewhere": ("cluster", "serve.weights", "best", "where no other pod reads"),
    "two experiments": ("dev", "experiment.toml", 'name = "x"', "not both"),
    "secret that is not there": ("cluster", "redis.passwordSecret", "elsewhere", "there is no Secret elsewhere"),
}


@pytest.mark.parametrize(("base", "path", "value", "expected"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused_with_what_is_wrong(base: str, path: str, value: object, expected: str) -> None:
    """The error names what is wrong, and how to mend it where the schema cannot."""
    helm = pytest.importorskip("helm_sdkpy")
    with pytest.raises(helm.HelmError) as refused:
        install(changed(example(base), path, value), FakeCluster(SECRETS))
    assert expected in str(refused.value)


def test_serve_may_have_clients_where_the_replay_server_has_none() -> None:
    """The replay server of a Ray cluster is for its run; what its agent decides is for whom it is allowed to."""
    values = changed(example("ray"), "networkPolicies.clientNamespaces", ["research"])
    found = objects(install(values, FakeCluster(SECRETS)).manifest)
    (policy,) = (
        one["spec"] for one in found if one["metadata"]["name"] == "zero-serve" and one["kind"] == "NetworkPolicy"
    )
    assert [port["port"] for port in policy["ingress"][0]["ports"]] == [8000]
    helm = pytest.importorskip("helm_sdkpy")
    with pytest.raises(helm.HelmError, match="for its run alone"):
        install(changed(values, "serve.enabled", False), FakeCluster(SECRETS))


def test_a_cluster_without_the_operator_is_named() -> None:
    """Who asks for a PodMonitor where nobody knows the kind is told in one line."""
    helm = pytest.importorskip("helm_sdkpy")
    with pytest.raises(helm.HelmError, match="no Prometheus operator: install it, or set"):
        install(example("cluster"), FakeCluster(SECRETS, KUBERAY))
    assert install(example("dev"), FakeCluster(operators={})).manifest


def test_a_cluster_without_kuberay_is_told_what_to_install() -> None:
    """In one line, as one whose name KubeRay would refuse is."""
    helm = pytest.importorskip("helm_sdkpy")
    with pytest.raises(helm.HelmError, match=r"no KubeRay operator: `helm install kuberay-operator .*, or set"):
        install(example("ray"), FakeCluster(SECRETS, PROMETHEUS_OPERATOR))
    with pytest.raises(helm.HelmError, match="begin the release's name with a letter"):
        install(example("ray"), FakeCluster(SECRETS), "2nd")


def ray_cluster() -> dict[str, Any]:
    """The specification of the example's."""
    found = objects((CHART / "rendered/ray.yaml").read_text())
    return next(one["spec"] for one in found if one["kind"] == "RayCluster")


def test_a_ray_cluster_is_one_that_kuberay_takes() -> None:
    """Rules of the operator's own, which its schema does not hold, and what its autoscaler needs to find."""
    spec = ray_cluster()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert spec["authOptions"]["mode"] == "token"
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0), "the first with tokens"
    assert f"ray=={spec['rayVersion']}\n" in (CHART.parents[1] / "constraints.txt").read_text(), "as in the image"
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in groups:
        assert group["template"]["spec"]["restartPolicy"] == "Never", "of autoscaler v2"
        assert not group["rayStartParams"].keys() & {"labels", "redis-password", "redis-username"}
        assert "resources" not in group, "they are in its pods"
        (container,) = group["template"]["spec"]["containers"]
        assert not {"RAY_REDIS_ADDRESS", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"} & {
            variable["name"] for variable in container.get("env", ())
        }
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["scaleStrategy"] == {"workersToDelete": []}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_only_the_autoscaler_may_call_kubernetes() -> None:
    """The token of the head's account is mounted into its container and into no other."""
    spec = ray_cluster()
    head = spec["headGroupSpec"]["template"]["spec"]
    (projected,) = (volume["name"] for volume in head["volumes"] if "projected" in volume)
    assert projected in {mount["name"] for mount in spec["autoscalerOptions"]["volumeMounts"]}
    assert projected not in {mount["name"] for mount in head["containers"][0]["volumeMounts"]}


def test_the_head_begins_the_run_beside_ray_and_again_until_it_is_stopped(tmp_path: Path) -> None:
    """The very command of the chart, as KubeRay puts it before `ray start`: Ray is not held up by it.

    A run that fails begins again, one that was stopped does not; an override with blanks arrives in one piece.
    """
    values = changed(example("ray"), "experiment.overrides", ["game.name=a b.py:Mine"])
    values["evaluator"] = {"enabled": False}
    found = objects(install(values, FakeCluster(SECRETS)).manifest)
    (spec,) = (one["spec"] for one in found if one["kind"] == "RayCluster")
    (command,) = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["command"]
    programs = {
        "ray": 'echo "ray $1" >> log; [ $1 = start ] && while [ ! -e done ]; do /bin/sleep 0.1; done; true',
        "sleep": "/bin/sleep 0.1",
        "zero": 'printf "%s\\n" "$@" >> log; [ -e failed ] && { touch done; exit 130; }; touch failed; exit 1',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    whole = f" {command}  && ulimit -n; ray start --head"
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["/bin/bash", "-c", "--", whole], cwd=tmp_path, env={"PATH": path}, check=True, timeout=30)
    lines = (tmp_path / "log").read_text().splitlines()
    expected = ["train", "--run-dir", "/data/run", "--actors", "32", "--minutes", "1000000", "--no-live"]
    expected += ["--no-evaluator", "--set=game.name=a b.py:Mine"]
    assert [line for line in lines if not line.startswith("ray ")] == 2 * expected
    assert {"ray start", "ray health-check"} <= set(lines)


@pytest.mark.parametrize("base", ["cluster", "ray"])
def test_serve_reads_the_volume_of_the_run_where_it_is(base: str) -> None:
    """It mounts what whoever keeps the run mounts, to read, and is placed on the same machine."""
    found = objects((CHART / f"rendered/{base}.yaml").read_text())
    pod = dict(templates(found))["zero-serve"]["spec"]
    claims = {f"data-{one['metadata']['name']}-0" for one in found if one["kind"] == "StatefulSet"}
    claims |= {one["metadata"]["name"] for one in found if one["kind"] == "PersistentVolumeClaim"}
    (claim,) = (volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "data")
    assert claim in claims
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in pod["containers"][0]["volumeMounts"]
    (near,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    wanted = near["labelSelector"]["matchLabels"].items()
    (keeper,) = (
        template["spec"] for _, template in templates(found) if wanted <= template["metadata"]["labels"].items()
    )
    assert any(mount["mountPath"] == "/data" for mount in keeper["containers"][0]["volumeMounts"])
    assert pod.get("tolerations") == keeper.get("tolerations"), "it may be where that one is"


def test_reanalysers_are_deployed_as_actors_are() -> None:
    """With the same settings, and allowed the same; in a Ray cluster the run begins with them."""
    values = example("dev")
    values["reanalysers"] = values["actors"]
    found = objects(install(values, FakeCluster(SECRETS)).manifest)
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    for kind in ("Deployment", "PodDisruptionBudget"):
        actor = yaml.safe_dump(named[kind, "zero-actor"]).replace("actor", "reanalyser")
        assert yaml.safe_load(actor) == named[kind, "zero-reanalyser"]
    (selected,) = named["NetworkPolicy", "zero-roles"]["spec"]["podSelector"]["matchExpressions"]
    assert "reanalyser" in selected["values"]
    release = install(changed(example("ray"), "reanalysers.replicas", 3), FakeCluster(SECRETS))
    (command,) = dict(pods(release.manifest))["ray-head"]["containers"][0]["command"]
    assert "--no-live --reanalysers 3 ||" in command


def container_of(release: Release, workload: str) -> dict[str, Any]:
    """The container of a workload."""
    return dict(pods(release.manifest))[workload]["containers"][0]


def test_values_reach_what_they_are_for() -> None:
    """A file as experiment, overrides, a digest, a GPU; names follow the release; notes name its commands."""
    values = example("cluster")
    values["experiment"] = {"toml": 'name = "mine"\n', "overrides": ["search.num_simulations=64"]}
    digest = f"sha256:{'0' * 64}"
    values["images"] = {"roles": {"repository": "here/zero", "tag": "1", "digest": digest}}
    release = install(values, FakeCluster(SECRETS), "mine")
    learner, actor = (container_of(release, name) for name in ("mine-learner", "mine-actor"))
    assert learner["image"] == actor["image"] == f"here/zero@{digest}"
    assert learner["args"] == actor["args"] == ["--set=search.num_simulations=64"]
    assert learner["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "ZERO_DEVICE", "value": "cuda"} in learner["env"]
    assert {"name": "ZERO_EXPERIMENT", "value": "/experiment/experiment.toml"} in actor["env"]
    assert {"name": "ZERO_REPLAY_ADDRESS", "value": "mine-replay-server:8470"} in actor["env"]
    (experiment,) = (found for found in objects(release.manifest) if found["metadata"]["name"] == "mine-experiment")
    assert experiment["data"] == {"experiment.toml": 'name = "mine"\n'}
    assert "scale deployment mine-actor" in release.notes
    assert "must be for mine-replay-server" in release.notes


def test_rules_and_dashboards_are_those_of_the_folders() -> None:
    """With the link to the runbook that is given."""
    values = changed(example("cluster"), "monitoring.runbook", "https://wiki/zero")
    found = objects(install(values, FakeCluster(SECRETS)).manifest)
    for name, file in (("zero-run", "alerts.yml"), ("zero-kubernetes", "kubernetes_alerts.yml")):
        (rule,) = (one for one in found if one["kind"] == "PrometheusRule" and one["metadata"]["name"] == name)
        text = (CHART.parent / "prometheus" / file).read_text().replace("deploy/README.md#", "https://wiki/zero#")
        assert rule["spec"] == yaml.safe_load(text)
    for file in (CHART.parent / "grafana/dashboards").iterdir():
        name = f"zero-dashboard-{file.stem}"
        (board,) = (one for one in found if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name)
        assert json.loads(board["data"][file.name]) == json.loads(file.read_text())


def test_redis_keeps_what_it_acknowledges_and_its_password_to_itself(tmp_path: Path) -> None:
    """The very command of the chart: it flushes always, deletes nothing, asks for a password that nobody can see."""
    (redis_server,) = (
        container
        for name, pod in pods((CHART / "rendered/cluster.yaml").read_text())
        if name == "zero-redis"
        for container in pod["containers"]
    )
    program = tmp_path / "redis-server"
    program.symlink_to(find_redis_server())
    port = free_port()
    shell, option, script = redis_server["command"]
    script = script.replace("dir /data\n", f"dir {tmp_path}\nport {port}\nbind 127.0.0.1\n")
    password = "sesame"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": password}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([shell, option, script], env=environment, stdout=log, stderr=log)
    try:
        with redis.Redis(port=port, password=password) as client:

            def answers() -> bool:
                try:
                    return client.ping()
                except redis.ConnectionError:
                    return False

            wait_until(answers, "Redis", 10)
            expected = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
            assert {name: client.config_get(name)[name] for name in expected} == expected
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"redis-server" in line
        assert password.encode() not in line
    finally:
        process.terminate()
        process.wait(10)

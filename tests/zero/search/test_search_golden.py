"""Whole trees, node by node, as they were when last looked at; run this file as a module to write them anew."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zero.search.models import HashWorld
from tests.zero.search.searches import search_of

GOLDEN = {name: Path(__file__).parent / "golden" / f"{name}_tree.json" for name in ("gumbel", "puct")}
WORLD = HashWorld(num_actions=5, terminal=0.12, chance=0.08, num_players=2, discount=0.9)


def search_tree(root_policy: str) -> dict[str, Any]:
    """The tree and result of one search, as JSON has it."""
    search = search_of(root_policy, WORLD, 1, num_simulations=24, max_num_considered_actions=4)
    result = search.run(np.array([[85]], np.uint64), np.array([2**63 + 5], np.uint64))
    tree = search.tree
    nodes: dict[str, Any] = {}
    for node in np.flatnonzero(tree.node_visits[0]).tolist():
        count = int(tree.num_children[0, node]) if tree.node_visits[0, node] > 1 else 0
        nodes[str(node)] = {
            name: getattr(tree, name)[0, node].tolist()
            for name in ("parent", "node_visits", "node_value", "raw_value", "reward", "discount", "is_chance")
            if node > 0 or name not in ("parent", "reward", "discount")
        } | {
            name: getattr(tree, f"child_{name}")[0, node, :count].tolist()
            for name in ("action", "logit", "prior", "visits", "q", "index")
        }
    gumbels = tree.root_gumbel[0, : tree.num_children[0, 0]].tolist()
    noise = {"root_gumbel": gumbels} if root_policy == "gumbel" else {}
    return {
        "action": result.actions[0].item(),
        "search_policy": result.search_policy[0].tolist(),
        "search_value": result.search_value[0].item(),
        **noise,
        "nodes": nodes,
    }


def assert_close(found: Any, golden: Any, path: str = "") -> None:
    """Equal structure, integers and flags; floats within float32."""
    if isinstance(golden, dict):
        assert found.keys() == golden.keys(), path
        for key in golden:
            assert_close(found[key], golden[key], f"{path}/{key}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), path
        for index, (one, other) in enumerate(zip(found, golden, strict=True)):
            assert_close(one, other, f"{path}/{index}")
    else:
        assert type(found) is type(golden), path
        assert found == (pytest.approx(golden, rel=1e-4, abs=1e-5) if isinstance(golden, float) else golden), path


def test_the_tree_is_the_golden_one(root_policy: str) -> None:
    """Every node, edge and number of a search with chance, ends and two players."""
    assert_close(search_tree(root_policy), json.loads(GOLDEN[root_policy].read_text()))


if __name__ == "__main__":
    for name, path in GOLDEN.items():
        path.write_text(json.dumps(search_tree(name), indent=1) + "\n")

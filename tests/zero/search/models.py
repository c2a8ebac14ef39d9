"""Search models for tests: random worlds made of hashes, small worlds written down, pseudo networks for real games."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zero.search.alphazero_model import Evaluate
from zero.search.model import RootOutput, StepOutput

Words = NDArray[np.uint64]


def mix(words: Words) -> Words:
    """Scramble uint64 words, elementwise."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        words = (words ^ (words >> np.uint64(33))) * np.uint64(multiplier)
    return words ^ (words >> np.uint64(33))


@dataclass(frozen=True)
class HashWorld:
    """A search model whose every number is a hash of the path: no structure that could hide a mistake.

    Positions are uint64 [B, 1]. Odd embeddings are afterstates.

    Attributes:
        num_actions: A.
        density: probability that an action is legal.
        terminal: probability that a step, or an outcome, ends the game.
        chance: probability that a step ends in an afterstate.
        num_players: with 2, half of the steps pass the turn.
        discount: its absolute value.
        reward_scale: factor of rewards and values.
        logit_scale: factor of the logits.
        num_outcomes: per afterstate, equally likely.
    """

    num_actions: int = 6
    density: float = 0.6
    terminal: float = 0.0
    chance: float = 0.0
    num_players: int = 1
    discount: float = 0.97
    reward_scale: float = 1.0
    logit_scale: float = 2.0
    num_outcomes: int = 3
    chance_size: int = 2

    @property
    def max_legal_actions(self) -> int:
        """All of them."""
        return self.num_actions

    def root(self, positions: NDArray[np.generic]) -> RootOutput:
        """Predict at positions [B, 1]."""
        states = positions[:, 0].astype(np.uint64) << np.uint64(1)
        return RootOutput(states[:, None], *self._predict(states))

    def step(
        self, embeddings: NDArray[np.generic], actions: NDArray[np.int64], uniforms: NDArray[np.float64]
    ) -> StepOutput:
        """Step along actions [B], or sample an outcome."""
        states = embeddings[:, 0].astype(np.uint64)
        resampling = actions < 0
        stepped = mix(states * np.uint64(31) + actions.astype(np.uint64)) & ~np.uint64(1)
        is_chance = resampling | (self._uniform(stepped, 1) < self.chance)
        reached = np.where(resampling, states, stepped | is_chance.astype(np.uint64))
        # Both uniforms matter, so a model that is handed the wrong ones gives other numbers.
        outcomes = (uniforms.sum(1) * self.num_outcomes).astype(np.uint64)
        drawn = np.where(is_chance, mix(reached * np.uint64(17) + outcomes) & ~np.uint64(1), reached)
        over = self._uniform(drawn, 2) < self.terminal
        logits, values, mask = self._predict(drawn)
        turns = (self._uniform(reached, 4) < 0.5) & (self.num_players == 2)
        rewards = self.reward_scale * (self._uniform(reached, 5) - 0.5)
        chance_rewards = self.reward_scale * (self._uniform(drawn, 6) - 0.5)
        return StepOutput(
            embeddings=reached[:, None],
            # Of a sampled outcome alone nobody may read these two.
            rewards=np.where(resampling, 1e6, rewards).astype(np.float32),
            chance_rewards=np.where(is_chance, chance_rewards, 0).astype(np.float32),
            discounts=np.where(resampling, 1e6, np.where(turns, -self.discount, self.discount)).astype(np.float32),
            values=np.where(over, np.float32(0), values),
            logits=logits,
            legal_action_mask=mask,
            terminated=over & ~is_chance,
            is_chance=is_chance,
        )

    def _predict(self, states: Words) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        actions = np.arange(self.num_actions, dtype=np.uint64)
        per_action = states[:, None] + (actions << np.uint64(20))
        mask = self._uniform(per_action, 7) < self.density
        mask[np.arange(len(states)), (states % np.uint64(self.num_actions)).astype(np.int64)] = True
        logits = (self.logit_scale * (2 * self._uniform(per_action, 8) - 1)).astype(np.float32)
        values = (self.reward_scale * (2 * self._uniform(states, 9) - 1)).astype(np.float32)
        return logits, values, mask

    def _uniform(self, states: Words, purpose: int) -> NDArray[np.float64]:
        return (mix(states * np.uint64(101) + np.uint64(purpose)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Edge:
    """Where an action leads in a ListedWorld: a node, and the reward on the way."""

    to: str
    reward: float = 0.0


@dataclass(frozen=True)
class Node:
    """A node of a ListedWorld.

    Attributes:
        value: what the model predicts.
        logits: one per action; all 0 if empty.
        edges: by action; actions without an edge are illegal, and a node without edges ends the game.
        outcomes: equally likely nodes; with any, this is an afterstate.
        passes_turn: the step into this node changes the player.
    """

    value: float = 0.0
    logits: tuple[float, ...] = ()
    edges: Mapping[int, Edge] | None = None
    outcomes: tuple[Edge, ...] = ()
    passes_turn: bool = False


class ListedWorld:
    """A search model that is written down node by node; positions are int64 [B, 1], indices of the nodes listed."""

    def __init__(self, num_actions: int, discount: float, nodes: Mapping[str, Node]) -> None:
        self.num_actions = num_actions
        self.max_legal_actions = num_actions
        self.chance_size = 1
        self.discount = discount
        self._nodes = list(nodes.values())
        self._index = {name: index for index, name in enumerate(nodes)}

    def positions(self, *names: str) -> NDArray[np.int64]:
        """The named nodes, [B, 1]."""
        return np.array([[self._index[name]] for name in names])

    def root(self, positions: NDArray[np.generic]) -> RootOutput:
        """Predict at positions [B, 1]."""
        nodes = [self._nodes[int(index)] for index in positions[:, 0]]
        return RootOutput(positions.copy(), *self._predict(nodes))

    def step(
        self, embeddings: NDArray[np.generic], actions: NDArray[np.int64], uniforms: NDArray[np.float64]
    ) -> StepOutput:
        """Step along actions [B], or sample an outcome."""
        edges = [
            self._nodes[index].edges[action] if action >= 0 else Edge(self._name(index))
            for index, action in zip(embeddings[:, 0].tolist(), actions.tolist(), strict=True)
        ]
        reached = [self._nodes[self._index[edge.to]] for edge in edges]
        draws = [
            node.outcomes[int(uniform * len(node.outcomes))] if node.outcomes else Edge(edge.to)
            for edge, node, uniform in zip(edges, reached, uniforms[:, 0], strict=True)
        ]
        logits, values, mask = self._predict([self._nodes[self._index[draw.to]] for draw in draws])
        is_chance = np.array([bool(node.outcomes) for node in reached])
        return StepOutput(
            embeddings=np.array([[self._index[edge.to]] for edge in edges]),
            rewards=np.array([edge.reward for edge in edges], np.float32),
            chance_rewards=np.array([draw.reward for draw in draws], np.float32),
            discounts=np.array([-self.discount if node.passes_turn else self.discount for node in reached], np.float32),
            values=values,
            logits=logits,
            legal_action_mask=mask,
            terminated=~mask.any(1) & ~is_chance,
            is_chance=is_chance,
        )

    def _name(self, index: int) -> str:
        return list(self._index)[index]

    def _predict(self, nodes: list[Node]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        nothing = (0.0,) * self.num_actions
        logits = np.array([node.logits or nothing for node in nodes], np.float32)
        values = np.array([node.value for node in nodes], np.float32)
        mask = np.array([[action in (node.edges or {}) for action in range(self.num_actions)] for node in nodes])
        return logits, values, mask


def hash_network(num_actions: int, value_scale: float = 1.0) -> Evaluate:
    """A pseudo network: normal logits and values that are a hash of each row alone, so batches cannot change them."""

    def evaluate(encoded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows = np.array([zlib.crc32(row.tobytes()) for row in encoded], np.uint64)
        columns = np.arange(2 * num_actions + 1, dtype=np.uint64) << np.uint64(32)
        uniforms = (mix(rows[:, None] + columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        logits = 4 * (uniforms[:, :num_actions] - uniforms[:, num_actions:-1])
        return logits.astype(np.float32), (value_scale * (2 * uniforms[:, -1] - 1)).astype(np.float32)

    return evaluate

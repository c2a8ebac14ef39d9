"""Both searches again: one game, recursive, on Python objects and floats; slow, and short enough to check by eye."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from zero.config import SearchConfig
from zero.search.model import SearchModel

_MASK = 2**64 - 1


def word(seed: int, counter: int) -> int:
    """Word `counter` of stream `seed`: SplitMix64 with a mixed seed."""

    def mix(word: int) -> int:
        word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _MASK
        return word ^ word >> 31

    weyl = 0x9E3779B97F4A7C15
    return mix((mix((seed + weyl) & _MASK) + (counter + 1) * weyl) & _MASK)


def uniform(seed: int, counter: int) -> float:
    """Number `counter` of stream `seed`: 52 bits, centred."""
    return ((word(seed, counter) >> 12) + 0.5) / 2**52


def gamma(seed: int, counter: int, shape: float) -> float:
    """Number `counter` of stream `seed`, gamma distributed: Marsaglia and Tsang on a stream of its own."""
    own = word(seed, counter)
    scale = shape + 1 - 1 / 3
    for attempt in range(100):
        one, other, third = (uniform(own, 1 + 3 * attempt + index) for index in range(3))
        normal = math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * other)
        cube = (1 + normal / math.sqrt(9 * scale)) ** 3
        if cube > 0 and math.log(third) < normal**2 / 2 + scale - scale * cube + scale * math.log(cube):
            return scale * cube * uniform(own, 0) ** (1 / shape)
    raise AssertionError("a hundred attempts were rejected")


@dataclass
class TreeNode:
    """A node; `children` are the ones visited so far, by action."""

    embedding: np.ndarray
    raw_value: float
    logits: dict[int, float]
    reward: float = 0.0
    discount: float = 1.0
    is_chance: bool = False
    returns: list[float] = field(default_factory=list)
    children: dict[int, "TreeNode"] = field(default_factory=dict)
    visits: dict[int, int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The mean return."""
        return sum(self.returns) / len(self.returns)

    def values_below(self) -> list[float]:
        """The values of all actions visited here and below."""
        here = [self.q(action) for action in self.children]
        return here + [value for child in self.children.values() for value in child.values_below()]

    def q(self, action: int) -> float:
        """Value of a visited action."""
        child = self.children[action]
        return child.reward + (1.0 if child.is_chance else child.discount) * child.value


@dataclass
class ReferenceResult:
    """As SearchResult, for one game; policy and visits by action."""

    action: int
    policy: dict[int, float]
    value: float
    visits: dict[int, int]
    num_unique_leaves: int


def softmax(logits: dict[int, float]) -> dict[int, float]:
    largest = max(logits.values())
    weights = {action: math.exp(logit - largest) for action, logit in logits.items()}
    return {action: weight / sum(weights.values()) for action, weight in weights.items()}


def halving(num_considered: int, num_simulations: int) -> list[int]:
    """The required visit counts, by playing Sequential Halving on a list of counters."""
    if num_considered <= 1:
        return list(range(num_simulations))
    counters, required = [0] * num_considered, []
    while len(required) < num_simulations:
        phases = math.ceil(math.log2(num_considered))
        repeats = max(1, math.floor(num_simulations / (phases * len(counters))))
        for _ in range(repeats):
            required += counters
            counters = [count + 1 for count in counters]
        counters = counters[: max(2, len(counters) // 2)]
    return required[:num_simulations]


class ReferenceSearch(ABC):
    """One search of one position, anew or from a node of an earlier one."""

    def __init__(
        self,
        model: SearchModel,
        config: SearchConfig,
        position: np.ndarray,
        seed: int,
        scale: float,
        kept: TreeNode | None = None,
    ) -> None:
        self.model, self.config, self.seed = model, config, seed
        output = model.root(position[None])
        self.root = TreeNode(output.embeddings[0], float(output.values[0]), self._legal(output.logits, output))
        self.root.returns.append(self.root.raw_value)
        self.root = kept or self.root
        self.seen_values = [self.root.value, *self.root.values_below()]
        self.num_unique_leaves = 0
        self.make_noise(scale)

    def run(self) -> ReferenceResult:
        """Search with all simulations."""
        if not self.root.logits:
            return ReferenceResult(-1, {}, self.root.value, {}, 0)
        for simulation in range(self.config.num_simulations):
            action = self.select_at_root(simulation)
            self.draw = self.root.visits.get(action, 0) if self.config.common_chance else simulation
            self.simulate(self.root, action)
        return ReferenceResult(
            self.best_action(), self.policy(), self.value(), self.root.visits, self.num_unique_leaves
        )

    @abstractmethod
    def make_noise(self, scale: float) -> None:
        """Draw the noise of the root."""

    @abstractmethod
    def select_at_root(self, simulation: int) -> int:
        """The root action that a simulation goes through."""

    @abstractmethod
    def select_inside(self, node: TreeNode) -> int:
        """The action that a simulation takes at a node below."""

    @abstractmethod
    def best_action(self) -> int:
        """The action to play."""

    @abstractmethod
    def policy(self) -> dict[int, float]:
        """The policy target."""

    @abstractmethod
    def value(self) -> float:
        """The value of the root."""

    def simulate(self, node: TreeNode, action: int) -> float:
        """Go through one edge and on; returns the return seen from the node, having entered it everywhere."""
        child = node.children.get(action)
        if child is None:
            child, onward = self.make_child(node, action)
        elif child.is_chance:
            _, onward = self.step(child, -1)
            child.returns.append(onward)
        elif not child.logits:
            onward = child.raw_value
            child.returns.append(onward)
        else:
            onward = self.simulate(child, self.select_inside(child))
        total = child.reward + (1.0 if child.is_chance else child.discount) * onward
        node.visits[action] = node.visits.get(action, 0) + 1
        node.returns.append(total)
        self.seen_values.append(node.q(action))
        return total

    def make_child(self, node: TreeNode, action: int) -> tuple[TreeNode, float]:
        """The new child, with the return from it on."""
        child, onward = self.step(node, action)
        child.returns.append(onward)
        node.children[action] = child
        self.num_unique_leaves += 1
        return child, onward

    def step(self, node: TreeNode, action: int) -> tuple[TreeNode, float]:
        """Step the model from a node; an unattached node, and the return from it on."""
        size = self.model.chance_size
        first = self.model.num_actions + self.draw * size
        uniforms = np.array([[uniform(self.seed, first + index) for index in range(size)]])
        output = self.model.step(node.embedding[None], np.array([action]), uniforms)
        value = 0.0 if output.terminated[0] else float(output.values[0])
        discount = float(output.discounts[0]) if action >= 0 else node.discount
        is_chance = bool(output.is_chance[0])
        onward = float(output.chance_rewards[0]) + discount * value if is_chance else value
        leaf = is_chance or output.terminated[0]
        logits = {} if leaf else self._legal(output.logits, output)
        child = TreeNode(output.embeddings[0], value, logits, float(output.rewards[0]), discount, is_chance)
        return child, onward

    def _legal(self, logits: np.ndarray, output: object) -> dict[int, float]:
        mask = output.legal_action_mask[0]  # type: ignore[attr-defined]
        return {int(action): float(logits[0, action]) for action in np.flatnonzero(mask)}


class ReferenceGumbel(ReferenceSearch):
    """Sequential Halving at the root, the improved policy inside (Danihelka et al. 2022)."""

    def make_noise(self, scale: float) -> None:
        """One Gumbel number per action."""
        self.gumbels = {a: scale * -math.log(-math.log(uniform(self.seed, a))) for a in self.root.logits}

    def select_at_root(self, simulation: int) -> int:
        """The best of those that are in turn."""
        num_considered = min(self.config.max_num_considered_actions, len(self.root.logits))
        return self.best_with_visits(halving(num_considered, self.config.num_simulations)[simulation])

    def best_action(self) -> int:
        """The best of the most visited."""
        return self.best_with_visits(max(self.root.visits.values()))

    def policy(self) -> dict[int, float]:
        """Softmax of logits plus sigma."""
        return softmax(self.improved_logits(self.root))

    def value(self) -> float:
        """The completed values under the policy."""
        completed = self.completed_values(self.root)
        return sum(share * completed[action] for action, share in self.policy().items())

    def best_with_visits(self, due: int) -> int:
        """The best action of the root among those with `due` visits."""
        improved = self.improved_logits(self.root)
        eligible = [action for action in self.root.logits if self.root.visits.get(action, 0) == due]
        return max(eligible, key=lambda action: self.gumbels[action] + improved[action])

    def select_inside(self, node: TreeNode) -> int:
        """The action that is furthest behind its share."""
        policy = softmax(self.improved_logits(node))
        total = sum(node.visits.values())
        return max(policy, key=lambda action: policy[action] - node.visits.get(action, 0) / (1 + total))

    def completed_values(self, node: TreeNode) -> dict[int, float]:
        """The values of all actions, those of unvisited ones filled in."""
        priors = softmax(node.logits)
        total = sum(node.visits.values())
        mixed = node.raw_value
        if total:
            weight = sum(priors[action] for action in node.visits)
            average = sum(priors[action] * node.q(action) for action in node.visits) / weight
            mixed = (node.raw_value + total * average) / (1 + total)
        return {action: node.q(action) if action in node.visits else mixed for action in node.logits}

    def improved_logits(self, node: TreeNode) -> dict[int, float]:
        """Logits, less the largest one, plus sigma of the completed values."""
        completed = self.completed_values(node)
        low, high = min(completed.values()), max(completed.values())
        scale = (self.config.c_visit + max(node.visits.values(), default=0)) * self.config.c_scale
        scale /= max(high - low, self.config.min_value_range, 1e-8)
        largest = max(node.logits.values())
        return {a: node.logits[a] - largest + scale * (completed[a] - low) for a in node.logits}


class ReferencePuct(ReferenceSearch):
    """The upper bound of MuZero everywhere, Dirichlet noise in the priors of the root."""

    def make_noise(self, scale: float) -> None:
        """Gamma numbers, normalised."""
        shape = self.config.dirichlet_alpha / max(1, len(self.root.logits))
        gammas = {action: gamma(self.seed, action, shape) for action in self.root.logits}
        fraction = scale * self.config.dirichlet_fraction
        self.root_priors = {
            action: (1 - fraction) * prior + fraction * gammas[action] / sum(gammas.values())
            for action, prior in (softmax(self.root.logits) if self.root.logits else {}).items()
        }

    def select_at_root(self, simulation: int) -> int:
        """As inside, with noise."""
        del simulation
        return self.select(self.root, self.root_priors)

    def select_inside(self, node: TreeNode) -> int:
        """Without noise."""
        return self.select(node, softmax(node.logits))

    def select(self, node: TreeNode, priors: dict[int, float]) -> int:
        """The largest value, between the least and the largest one seen in the tree, plus the bonus."""
        low, high = min(self.seen_values), max(self.seen_values)
        value_range = max(high - low, self.config.min_value_range, 1e-8)
        n, base = len(node.returns), self.config.pb_c_base
        pb_c = self.config.pb_c_init + math.log((n + base + 1) / base)

        def score(action: int) -> float:
            value = node.q(action) if action in node.visits else node.value
            return (value - low) / value_range + pb_c * priors[action] * math.sqrt(n) / (1 + node.visits.get(action, 0))

        return max(priors, key=score)

    def best_action(self) -> int:
        """The most visited one, the better one of several."""
        return max(sorted(self.root.visits), key=lambda action: (self.root.visits[action], self.root.q(action)))

    def policy(self) -> dict[int, float]:
        """Shares of the visits."""
        total = sum(self.root.visits.values())
        return {action: count / total for action, count in self.root.visits.items()}

    def value(self) -> float:
        """The mean return."""
        return self.root.value


REFERENCES: dict[str, type[ReferenceSearch]] = {"gumbel": ReferenceGumbel, "puct": ReferencePuct}

"""The search of an experiment, as its config names it."""

from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.search.alphazero_model import AlphaZeroModel, Evaluate
from zero.search.gumbel import GumbelSearch
from zero.search.puct import PuctSearch
from zero.search.tree_search import TreeSearch

_SEARCHES: dict[str, type[GumbelSearch] | type[PuctSearch]] = {"gumbel": GumbelSearch, "puct": PuctSearch}


def make_search(game: Game, evaluate: Evaluate, config: ExperimentConfig, batch_size: int) -> TreeSearch:
    """A search of `batch_size` games at once with a network's predictions."""
    model = AlphaZeroModel(game, evaluate, config.discount, config.search.chance_draws)
    return _SEARCHES[config.search.root_policy](model, config.search, batch_size)

"""The search of an experiment, as its config names it."""

from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.search.alphazero_model import AlphaZeroModel, Evaluate, ObservationNetwork
from zero.search.gumbel import GumbelSearch
from zero.search.learned_model import LearnedModel, ModelNetwork
from zero.search.model import SearchModel
from zero.search.puct import PuctSearch
from zero.search.tree_search import TreeSearch

_SEARCHES: dict[str, type[GumbelSearch] | type[PuctSearch]] = {"gumbel": GumbelSearch, "puct": PuctSearch}


Network = Evaluate | ObservationNetwork | ModelNetwork


def make_search(game: Game, network: Network, config: ExperimentConfig, batch_size: int) -> TreeSearch:
    """A search of `batch_size` games at once with a network's predictions, by the rules or by its learned model.

    Raises:
        TypeError: the config names a learned model, and the network has none.
    """
    return _SEARCHES[config.search.root_policy](_make_model(game, network, config), config.search, batch_size)


def _make_model(game: Game, network: Network, config: ExperimentConfig) -> SearchModel:
    if config.network.model == "learned":
        if not isinstance(network, ModelNetwork):
            raise TypeError('network.model is "learned": make_inference gives a network that can be asked')
        return LearnedModel(game, network, config.discount)
    if not isinstance(network, ObservationNetwork) and not callable(network):
        raise TypeError('network.model is "rules": make_inference gives a network that can be called')
    return AlphaZeroModel(game, network, config.discount, config.search.chance_draws)

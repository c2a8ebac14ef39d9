"""Prometheus metrics of actors, whose every change is an event, too."""

from actors.self_play import MoveReport
from actors.tuning import Tuning
from replay_server.recorded_metrics import Counter, Gauge, Histogram, RecordingRegistry, Summary
from zero.trajectories import Trajectory


class ActorMetrics:
    """All series of one actor, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = RecordingRegistry()
        self.games = Counter("zero_actor_games", "Games finished.", registry=self.registry)
        self.moves = Counter("zero_actor_moves", "Moves played.", registry=self.registry)
        self.simulations = Counter("zero_actor_simulations", "Search simulations made.", registry=self.registry)
        self.score = Summary("zero_actor_score", "Score of finished games.", registry=self.registry)
        self.recent_score = Gauge(
            "zero_actor_recent_score", "Mean score of the last 100 finished games.", registry=self.registry
        )
        self.game_length = Histogram(
            "zero_actor_game_length_moves",
            "Moves of finished games.",
            buckets=(5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560),
            registry=self.registry,
        )
        self.step_reward = Summary(
            "zero_actor_step_reward", "Mean reward of the moves of finished games.", registry=self.registry
        )
        self.game_stat = Summary(
            "zero_actor_game_stat", "What finished games count, by name.", ["stat"], registry=self.registry
        )
        self.weights_version = Gauge(
            "zero_actor_weights_version", "Version of the weights in play.", registry=self.registry
        )
        self.insert_wait = Counter(
            "zero_actor_insert_wait_seconds", "Time that play waited for inserts.", registry=self.registry
        )
        self.inserts_in_flight = Gauge(
            "zero_actor_inserts_in_flight", "Trajectories sent and not acknowledged.", registry=self.registry
        )
        self.search_depth = Gauge(
            "zero_actor_search_depth_moves",
            "Mean depth at which simulations end, last move.",
            registry=self.registry,
        )
        self.unique_leaf_ratio = Gauge(
            "zero_actor_unique_leaf_ratio", "New nodes per simulation, last move.", registry=self.registry
        )
        self.search_policy_entropy = Gauge(
            "zero_actor_search_policy_entropy_nats",
            "Mean entropy of the search policies, last move.",
            registry=self.registry,
        )
        self.search_policy_divergence = Gauge(
            "zero_actor_search_policy_divergence_nats",
            "Mean KL divergence of the search policies from the network's, last move.",
            registry=self.registry,
        )
        self.search_optimism = Summary(
            "zero_actor_search_optimism",
            "Search value minus the return that followed, mean over the moves of a finished game.",
            registry=self.registry,
        )
        self.inference_seconds = Histogram(
            "zero_actor_inference_seconds",
            "Time of a request for leaves to a served agent, its repetitions included; nothing of local inference.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 20, 60),
            registry=self.registry,
        )
        self.inference_leaves = Counter(
            "zero_actor_inference_leaves", "Leaves that a served agent evaluated.", registry=self.registry
        )
        self.inference_retries = Counter(
            "zero_actor_inference_retries", "Requests for leaves that were sent again.", registry=self.registry
        )
        self.games_at_once = Gauge(
            "zero_actor_games_at_once", "Games in lock step, and so the batch of the network.", registry=self.registry
        )
        self.network_dtype = Gauge(
            "zero_actor_network_dtype", "1 for the dtype that the network plays in.", ["dtype"], registry=self.registry
        )
        self.measured_simulations = Gauge(
            "zero_actor_measured_simulations_per_second",
            "Search simulations per second of processor time, as measured at start.",
            registry=self.registry,
        )

    def report_tuning(self, tuning: Tuning) -> None:
        """Enter how the actor plays."""
        self.games_at_once.set(tuning.games)
        self.network_dtype.labels(str(tuning.dtype).removeprefix("torch.")).set(1)
        self.measured_simulations.set(tuning.simulations_per_second)

    def report_move(self, report: MoveReport) -> None:
        """Enter one move of all games."""
        self.moves.inc(report.num_moves)
        self.simulations.inc(report.num_simulations)
        self.search_depth.set(report.search_depth)
        self.unique_leaf_ratio.set(report.unique_leaf_ratio)
        self.search_policy_entropy.set(report.policy_entropy)
        self.search_policy_divergence.set(report.policy_divergence)
        for optimism in report.search_optimism:
            self.search_optimism.observe(optimism)

    def report_game(self, game: Trajectory) -> None:
        """Enter a finished game."""
        self.games.inc()
        self.score.observe(game.stats["score"])
        self.game_length.observe(game.num_steps)
        self.step_reward.observe(float(game.columns["reward"].mean(dtype="float64")))
        for stat, value in game.stats.items():
            if stat != "score":
                self.game_stat.labels(stat).observe(value)

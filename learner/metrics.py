"""The learner's Prometheus metrics, whose every change is an event, too."""

import shutil
from pathlib import Path

from replay_server.recorded_metrics import Counter, Gauge, Histogram, RecordingRegistry
from zero.search_ages import SearchAges


class CheckpointMetrics:
    """What saving comes to.

    Args:
        registry: of the learner.
    """

    def __init__(self, registry: RecordingRegistry) -> None:
        self.timestamp = Gauge(
            "zero_learner_checkpoint_timestamp_seconds", "When the last checkpoint was saved.", registry=registry
        )
        self.write_seconds = Gauge(
            "zero_learner_checkpoint_duration_seconds",
            "How long the last checkpoint took to be written, beside training.",
            registry=registry,
        )
        self.pause_seconds = Counter(
            "zero_learner_checkpoint_pause_seconds",
            "Time for which training paused while the state of a checkpoint was taken.",
            registry=registry,
        )
        self.saved = Counter("zero_learner_saved_checkpoints", "Checkpoints that were saved.", registry=registry)
        self.failed = Counter(
            "zero_learner_failed_checkpoints", "Checkpoints that the disk refused.", registry=registry
        )


class LearnerMetrics:
    """All series of one learner, in a registry of its own."""

    def __init__(self, run_dir: Path) -> None:
        """run_dir is looked at whenever the room on its disk is asked for."""
        self.registry = RecordingRegistry()
        self.training_step = Gauge(
            "zero_learner_training_step", "Optimizer updates of the run, restarts included.", registry=self.registry
        )
        self.training_steps = Counter(
            "zero_learner_training_steps", "Optimizer updates of this process.", registry=self.registry
        )
        self.weights_version = Gauge(
            "zero_learner_weights_version", "Newest published weights version.", registry=self.registry
        )
        self.total_loss = Gauge("zero_learner_total_loss", "What is minimised, last batch.", registry=self.registry)
        self.policy_loss = Gauge(
            "zero_learner_policy_loss",
            "KL divergence from search policy to policy, last batch.",
            registry=self.registry,
        )
        self.value_loss = Gauge(
            "zero_learner_value_loss", "Cross-entropy of the categorical value, last batch.", registry=self.registry
        )
        self.unrolled_policy_loss = Gauge(
            "zero_learner_unrolled_policy_loss",
            "KL divergence from search policy to policy after actions of a learned model, last batch.",
            registry=self.registry,
        )
        self.unrolled_value_loss = Gauge(
            "zero_learner_unrolled_value_loss",
            "Cross-entropy of the categorical value after actions of a learned model, last batch.",
            registry=self.registry,
        )
        self.reward_loss = Gauge(
            "zero_learner_reward_loss",
            "Cross-entropy of a learned model's categorical reward, last batch.",
            registry=self.registry,
        )
        self.chance_loss = Gauge(
            "zero_learner_chance_loss",
            "Cross-entropy of a learned model's foresight of chance, last batch.",
            registry=self.registry,
        )
        self.consistency_loss = Gauge(
            "zero_learner_consistency_loss",
            "1 less the cosine between foreseen and real states of a learned model, last batch.",
            registry=self.registry,
        )
        self.policy_entropy = Gauge(
            "zero_learner_policy_entropy_nats",
            "Mean entropy of the network's policy over the actions that the search considered, last batch.",
            registry=self.registry,
        )
        self.td_error = Gauge(
            "zero_learner_td_error",
            "Mean absolute difference of value and target in transformed scale, last batch.",
            registry=self.registry,
        )
        self.importance_sampling_exponent = Gauge(
            "zero_learner_importance_sampling_exponent",
            "Exponent of the importance weights (beta of prioritized replay), last batch.",
            registry=self.registry,
        )
        self.target_entropy = Gauge(
            "zero_learner_target_entropy",
            "Mean entropy of the policy targets in nats, last batch.",
            registry=self.registry,
        )
        self.target_value = Gauge(
            "zero_learner_target_value", "Mean value target in real scale, last batch.", registry=self.registry
        )
        self.clamped_targets = Gauge(
            "zero_learner_clamped_targets_ratio",
            "Share of the value and reward targets beyond the support, which are learned as its end, last batch.",
            registry=self.registry,
        )
        self.value_bias = Gauge(
            "zero_learner_value_bias",
            "Mean predicted value minus mean value target in real scale, as of uniform draws, last batch.",
            registry=self.registry,
        )
        self.value_slope = Gauge(
            "zero_learner_value_slope",
            "Slope of value targets over predicted values, as of uniform draws, last batch; 1 is calibrated.",
            registry=self.registry,
        )
        self.gradient_norm = Gauge(
            "zero_learner_gradient_norm", "Norm of the gradient before clipping, last batch.", registry=self.registry
        )
        self.learning_rate = Gauge("zero_learner_learning_rate", "Learning rate, last batch.", registry=self.registry)
        self.staleness = Gauge(
            "zero_learner_staleness_versions",
            "Mean of newest published version minus the version that played the data, last batch.",
            registry=self.registry,
        )
        self.search_staleness = Gauge(
            "zero_learner_search_staleness_versions",
            "Mean of newest published version minus the version that searched the drawn positions last, last batch.",
            registry=self.registry,
        )
        self.reanalysed = Gauge(
            "zero_learner_reanalysed_ratio",
            "Share of the drawn positions that were searched again after play, last batch.",
            registry=self.registry,
        )
        self.reanalysed_age = Gauge(
            "zero_learner_reanalysed_age_seconds",
            "Mean time since these were searched again, last batch; NaN if none was.",
            registry=self.registry,
        )
        self.batch_wait = Counter(
            "zero_learner_batch_wait_seconds", "Time spent waiting for batches.", registry=self.registry
        )
        self.step_seconds = Histogram(
            "zero_learner_training_step_seconds",
            "Duration of a training step without waiting for data.",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self._add_safety(run_dir)

    def _add_safety(self, folder: Path) -> None:
        """What tells whether the run is safe."""
        self.nonfinite_steps = Counter(
            "zero_learner_nonfinite_steps",
            "Training steps given up because loss or gradient was not finite.",
            registry=self.registry,
        )
        self.checkpoints = CheckpointMetrics(self.registry)
        for name, text, read in (
            ("disk_free_bytes", "Room on the disk of the run's folder.", lambda: shutil.disk_usage(folder).free),
            ("disk_bytes", "Size of the disk of the run's folder.", lambda: shutil.disk_usage(folder).total),
        ):
            Gauge(f"zero_learner_{name}", text, registry=self.registry).set_function(read)

    def report_searches(self, ages: SearchAges) -> None:
        """Enter how old the searches are whose results are learned."""
        self.reanalysed.set(ages.reanalysed_ratio)
        self.search_staleness.set(ages.behind_versions)
        self.reanalysed_age.set(ages.reanalysed_age_seconds)

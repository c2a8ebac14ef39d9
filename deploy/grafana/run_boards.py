"""Dashboards of a run as its owner sees it: overview, learner, actors and evaluator."""

from deploy.grafana.board import Board, Panel, Query, Row, quantiles

VERSION_LAG = Query("max(zero_replay_weights_version) - min(zero_actor_weights_version)", "slowest actor")
PROCESSES = (
    Panel(
        "Processor time",
        "percentunit",
        [Query("sum by (role, process_id) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{process_id}}")],
        "1 is one core.",
    ),
    Panel("Memory", "bytes", [Query("sum by (role, process_id) (process_resident_memory_bytes)", "{{process_id}}")]),
    Panel(
        "Events, by what became of them",
        "ops",
        [Query("sum by (outcome) (rate(zero_events_total[$__rate_interval]))", "{{outcome}}")],
    ),
    Panel(
        "Starts within half an hour",
        "short",
        [Query("sum by (role, process_id) (changes(process_start_time_seconds[30m]) + 1)", "{{process_id}}")],
        "1 is a process that was never restarted.",
    ),
)

OVERVIEW = Board(
    "overview",
    "Zero: overview",
    "Whether a run plays, learns and gets better.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Games", "ops", [Query("sum(rate(zero_actor_games_total[$__rate_interval]))", "")], is_number=True
                ),
                Panel(
                    "Moves", "ops", [Query("sum(rate(zero_actor_moves_total[$__rate_interval]))", "")], is_number=True
                ),
                Panel(
                    "Training steps",
                    "ops",
                    [Query("sum(rate(zero_learner_training_steps_total[$__rate_interval]))", "")],
                    is_number=True,
                ),
                Panel("Weights version", "none", [Query("max(zero_replay_weights_version)", "")], is_number=True),
                Panel(
                    "Actors alive",
                    "none",
                    [Query('sum(zero_replay_live_processes{process="actor"})', "")],
                    is_number=True,
                ),
                Panel(
                    "Alerts firing",
                    "none",
                    [Query('count(ALERTS{alertname=~"Zero.+", alertstate="firing"}) or vector(0)', "")],
                    is_number=True,
                ),
            ),
        ),
        Row(
            "Strength",
            (
                Panel(
                    "Evaluation score",
                    "short",
                    [Query("max by (player) (zero_evaluator_score)", "{{player}}")],
                    "On fixed seeds; in two-player games the mean result against all baselines.",
                ),
                Panel("Score of self-play", "short", [Query("avg(zero_actor_recent_score)", "mean of the last games")]),
                Panel("Training step", "none", [Query("max(zero_learner_training_step)", "step")]),
            ),
        ),
        Row(
            "Flow",
            (
                Panel(
                    "Steps inserted and drawn",
                    "ops",
                    [
                        Query("sum(rate(zero_replay_inserted_steps_total[$__rate_interval]))", "inserted"),
                        Query("sum(rate(zero_replay_sampled_positions_total[$__rate_interval]))", "drawn"),
                    ],
                ),
                Panel(
                    "Samples per insert",
                    "short",
                    [
                        Query(
                            "sum by (table) (rate(zero_replay_sampled_positions_total[$__rate_interval])) / "
                            "sum by (table) (rate(zero_replay_inserted_steps_total[$__rate_interval]))",
                            "{{table}}",
                        ),
                        Query("max by (table) (zero_replay_limiter_samples_per_insert)", "aim of {{table}}"),
                    ],
                ),
                Panel(
                    "Versions that drawn data are behind",
                    "short",
                    [*quantiles("zero_replay_sample_versions_behind", "drawn"), VERSION_LAG],
                ),
                Panel(
                    "Steps stored", "short", [Query("sum by (table) (zero_replay_steps)", "{{table}}")], is_stacked=True
                ),
                Panel(
                    "Processes alive", "none", [Query("sum by (process) (zero_replay_live_processes)", "{{process}}")]
                ),
                Panel(
                    "Actors that there shall be",
                    "none",
                    [
                        Query("sum(zero_fleet_actors_wanted)", "wanted"),
                        Query("sum(zero_fleet_actors_running)", "running"),
                    ],
                    "As `zero scale` sets it; less are running while Ray has no machine for them.",
                ),
                Panel("Scraped", "none", [Query("count by (role) (up == 1)", "{{role}}")]),
            ),
        ),
        Row("Processes", PROCESSES),
    ),
)

LEARNER = Board(
    "learner",
    "Zero: learner",
    "Where the learner's time goes, and whether what it learns is sound.",
    (
        Row(
            "Speed",
            (
                Panel(
                    "Training steps",
                    "ops",
                    [Query("sum(rate(zero_learner_training_steps_total[$__rate_interval]))", "steps")],
                ),
                Panel(
                    "Time of a step", "s", quantiles("zero_learner_training_step_seconds"), "Without waiting for data."
                ),
                Panel(
                    "Share of the time that it waits for data",
                    "percentunit",
                    [Query("sum(rate(zero_learner_batch_wait_seconds_total[$__rate_interval]))", "waiting")],
                    "Near 1: the actors are the bottleneck. Near 0: the learner is.",
                ),
            ),
        ),
        Row(
            "Losses",
            (
                Panel(
                    "Losses",
                    "short",
                    [
                        Query("max(zero_learner_policy_loss)", "policy"),
                        Query("max(zero_learner_value_loss)", "value"),
                        Query("max(zero_learner_total_loss)", "what is minimised"),
                    ],
                ),
                Panel(
                    "Losses of a learned model",
                    "short",
                    [
                        Query("max(zero_learner_unrolled_policy_loss)", "policy after actions"),
                        Query("max(zero_learner_unrolled_value_loss)", "value after actions"),
                        Query("max(zero_learner_reward_loss)", "reward"),
                        Query("max(zero_learner_chance_loss)", "chance"),
                        Query("max(zero_learner_consistency_loss)", "consistency"),
                    ],
                    "0 where the search plays by the rules.",
                ),
                Panel("Error of values", "short", [Query("max(zero_learner_td_error)", "mean, in transformed scale")]),
                Panel(
                    "Exponent of importance weights",
                    "short",
                    [Query("max(zero_learner_importance_sampling_exponent)", "exponent")],
                ),
                Panel("Gradient norm", "short", [Query("max(zero_learner_gradient_norm)", "before clipping")]),
                Panel("Learning rate", "sci", [Query("max(zero_learner_learning_rate)", "learning rate")]),
                Panel(
                    "Steps given up",
                    "short",
                    [Query("sum(increase(zero_learner_nonfinite_steps_total[$__rate_interval]))", "not finite")],
                    "Must be 0.",
                ),
            ),
        ),
        Row(
            "Targets",
            (
                Panel(
                    "Entropy of the policy targets",
                    "short",
                    [
                        Query("max(zero_learner_target_entropy)", "nats"),
                        Query("max(zero_learner_policy_entropy_nats)", "of the network's policy, nats"),
                    ],
                    "Falls as the search becomes sure; at 0 nothing new is tried.",
                ),
                Panel(
                    "Value: targets and bias",
                    "short",
                    [
                        Query("max(zero_learner_target_value)", "mean target"),
                        Query("max(zero_learner_value_bias)", "predicted minus target"),
                    ],
                ),
                Panel(
                    "Value: slope",
                    "short",
                    [Query("max(zero_learner_value_slope)", "target over prediction")],
                    "1 is calibrated; below 1 the network is too sure of itself.",
                ),
                Panel(
                    "Targets beyond the support",
                    "percentunit",
                    [Query("max(zero_learner_clamped_targets_ratio)", "clamped")],
                    "Above some percent the support is too narrow: network.support_min and support_max.",
                ),
                Panel(
                    "Versions behind",
                    "short",
                    [
                        Query("max(zero_learner_staleness_versions)", "who played"),
                        Query("max(zero_learner_search_staleness_versions)", "who searched last"),
                    ],
                    "Mean of the last batch.",
                ),
                Panel(
                    "Searched again after play",
                    "percentunit",
                    [Query("max(zero_learner_reanalysed_ratio)", "share of the last batch")],
                ),
            ),
        ),
        Row(
            "What it leaves behind",
            (
                Panel(
                    "Age of the checkpoint",
                    "s",
                    [Query("time() - max(zero_learner_checkpoint_timestamp_seconds > 0)", "since it was saved")],
                ),
                Panel(
                    "Checkpoints that failed",
                    "short",
                    [Query("sum(increase(zero_learner_failed_checkpoints_total[10m]))", "within 10 minutes")],
                    "The disk refused them; the one before stays.",
                ),
                Panel("Weights published", "none", [Query("max(zero_learner_weights_version)", "version")]),
                Panel("Publication to first use", "short", [VERSION_LAG], "In versions."),
                Panel(
                    "Room on the disk of the run's folder",
                    "bytes",
                    [
                        Query("min(zero_learner_disk_free_bytes)", "free"),
                        Query("min(zero_learner_disk_bytes)", "size"),
                    ],
                ),
            ),
        ),
    ),
)

ACTORS = Board(
    "actors",
    "Zero: actors and evaluator",
    "How fast the games go, how sound the search is, how strong the player.",
    (
        Row(
            "Speed",
            (
                Panel("Games", "ops", [Query("sum(rate(zero_actor_games_total[$__rate_interval]))", "games")]),
                Panel("Moves", "ops", [Query("sum(rate(zero_actor_moves_total[$__rate_interval]))", "moves")]),
                Panel(
                    "Simulations",
                    "ops",
                    [
                        Query("sum(rate(zero_actor_simulations_total[$__rate_interval]))", "made"),
                        Query(
                            "sum(zero_actor_measured_simulations_per_second)",
                            "per second of processor time, as measured at start",
                        ),
                    ],
                    "Far below what was measured: the cores are shared, or play waits for inserts.",
                ),
                Panel("Games at once", "none", [Query("sum(zero_actor_games_at_once)", "games in lock step")]),
                Panel(
                    "Dtype of the network", "none", [Query("sum by (dtype) (zero_actor_network_dtype)", "{{dtype}}")]
                ),
                Panel(
                    "Share of the time that play waits for inserts",
                    "percentunit",
                    [Query("avg(rate(zero_actor_insert_wait_seconds_total[$__rate_interval]))", "mean of the actors")],
                    "Near 1: the replay server or the rate limiter holds the actors back.",
                ),
            ),
        ),
        Row(
            "Games",
            (
                Panel("Length of games", "short", quantiles("zero_actor_game_length_moves"), "In moves."),
                Panel(
                    "Score",
                    "short",
                    [
                        Query(
                            "sum(rate(zero_actor_score_sum[$__rate_interval])) / "
                            "sum(rate(zero_actor_score_count[$__rate_interval]))",
                            "mean",
                        ),
                        Query("avg(zero_actor_recent_score)", "mean of the last games"),
                    ],
                ),
                Panel(
                    "Reward of a move",
                    "short",
                    [
                        Query(
                            "sum(rate(zero_actor_step_reward_sum[$__rate_interval])) / "
                            "sum(rate(zero_actor_step_reward_count[$__rate_interval]))",
                            "mean of finished games",
                        )
                    ],
                ),
                Panel("Inserts in flight", "none", [Query("sum(zero_actor_inserts_in_flight)", "trajectories")]),
                Panel(
                    "Weights in play",
                    "none",
                    [
                        Query("max(zero_actor_weights_version)", "newest"),
                        Query("min(zero_actor_weights_version)", "oldest"),
                    ],
                ),
            ),
        ),
        Row(
            "Search",
            (
                Panel(
                    "Unique leaves",
                    "percentunit",
                    [Query("avg(zero_actor_unique_leaf_ratio)", "new nodes per simulation")],
                    "Low: simulations are spent on positions that are known already.",
                ),
                Panel("Depth of the search", "short", [Query("avg(zero_actor_search_depth_moves)", "moves")]),
                Panel(
                    "Entropy of the search's policy",
                    "short",
                    [Query("avg(zero_actor_search_policy_entropy_nats)", "nats")],
                ),
                Panel(
                    "Search against network",
                    "short",
                    [Query("avg(zero_actor_search_policy_divergence_nats)", "KL divergence, nats")],
                    "What the search adds; at 0 there is nothing to learn from it.",
                ),
                Panel(
                    "Optimism of the search",
                    "short",
                    [
                        Query(
                            "sum(rate(zero_actor_search_optimism_sum[$__rate_interval])) / "
                            "sum(rate(zero_actor_search_optimism_count[$__rate_interval]))",
                            "search value minus return",
                        )
                    ],
                    "Should stay near 0: above, the search believes in luck that does not come.",
                ),
            ),
        ),
        Row(
            "Evaluator",
            (
                Panel(
                    "Score",
                    "short",
                    [
                        Query("max by (player) (zero_evaluator_score)", "{{player}}"),
                        Query("max(zero_evaluator_best_score)", "best weights so far"),
                    ],
                ),
                Panel("Median score", "short", [Query("max by (player) (zero_evaluator_score_median)", "{{player}}")]),
                Panel(
                    "Standard error of the score",
                    "short",
                    [Query("max by (player) (zero_evaluator_score_standard_error)", "{{player}}")],
                ),
                Panel(
                    "Results of two-player games",
                    "short",
                    [Query("max by (player, opponent) (zero_evaluator_result)", "{{player}} against {{opponent}}")],
                ),
                Panel(
                    "Rating",
                    "short",
                    [
                        Query("max by (player) (zero_evaluator_rating_elo)", "{{player}}"),
                        Query("max by (player) (zero_evaluator_rating_standard_error_elo)", "error of {{player}}"),
                    ],
                    "Elo, of two-player games.",
                ),
                Panel(
                    "Weights measured",
                    "none",
                    [
                        Query("max(zero_evaluator_weights_version)", "version"),
                        Query("max(zero_evaluator_best_training_step)", "training step of the best"),
                    ],
                ),
                Panel(
                    "Evaluations",
                    "s",
                    [Query("max(zero_evaluator_evaluation_seconds)", "time of one")],
                ),
                Panel("Evaluations finished", "none", [Query("sum(zero_evaluator_evaluations_total)", "finished")]),
            ),
        ),
        Row("Processes", PROCESSES),
    ),
)

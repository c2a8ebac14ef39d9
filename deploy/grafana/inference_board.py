"""The dashboard of a served agent: what people and actors ask of it, and how long that takes."""

from deploy.grafana.board import Board, Panel, Query, Row, quantiles


def _rate(metric: str, legend: str, by: str = "") -> Query:
    return Query(f"sum {f'by ({by}) ' if by else ''}(rate({metric}[$__rate_interval]))", legend)


def _mean(histogram: str, legend: str) -> Query:
    return Query(
        f"sum(rate({histogram}_sum[$__rate_interval])) / sum(rate({histogram}_count[$__rate_interval]))", legend
    )


INFERENCE = Board(
    "inference",
    "Zero: inference",
    "What a served agent decides and evaluates, for whom, how fast. Empty without `zero serve --weights published`.",
    (
        Row(
            "Leaves of actors",
            (
                Panel(
                    "Leaves",
                    "ops",
                    [
                        _rate("zero_serve_leaves_total", "evaluated"),
                        _rate("zero_actor_inference_leaves_total", "received by actors"),
                    ],
                ),
                Panel(
                    "Requests of actors",
                    "ops",
                    [
                        _rate("zero_actor_inference_seconds_count", "answered"),
                        _rate("zero_actor_inference_retries_total", "sent again"),
                    ],
                    "Sent again: the agent was away or too busy.",
                ),
                Panel(
                    "Leaves evaluated at once",
                    "short",
                    [
                        *quantiles("zero_serve_batch_leaves"),
                        Query(
                            "sum(rate(zero_actor_inference_leaves_total[$__rate_interval])) / "
                            "sum(rate(zero_actor_inference_seconds_count[$__rate_interval]))",
                            "mean of one request",
                        ),
                    ],
                    "Larger than a request: those of several actors are evaluated together.",
                ),
                Panel(
                    "Time of a request, as actors see it",
                    "s",
                    quantiles("zero_actor_inference_seconds"),
                    "Way included.",
                ),
                Panel("Time of a request at the agent", "s", quantiles("zero_serve_evaluate_seconds")),
            ),
        ),
        Row(
            "Decisions",
            (
                Panel(
                    "Requests by route and outcome",
                    "ops",
                    [_rate("zero_serve_requests_total", "{{route}} {{code}}", "route, code")],
                ),
                Panel("Positions decided on", "ops", [_rate("zero_serve_positions_total", "positions")]),
                Panel("Time of POST /act", "s", quantiles("zero_serve_act_seconds")),
                Panel("Positions searched at once", "short", [_mean("zero_serve_batch_positions", "mean")]),
            ),
        ),
        Row(
            "Weights",
            (
                Panel(
                    "Weights version",
                    "none",
                    [
                        Query("max(zero_replay_weights_version)", "published"),
                        Query("min(zero_serve_weights_version)", "served, the oldest"),
                    ],
                ),
                Panel("Training step", "none", [Query("min(zero_serve_training_step)", "served, the oldest")]),
                Panel(
                    "Changes of weights",
                    "ops",
                    [
                        _rate("zero_serve_swaps_total", "taken"),
                        _rate("zero_serve_refused_weights_total", "refused"),
                    ],
                    "Refused: the replica's log says why; it goes on with those it has.",
                ),
            ),
        ),
    ),
)

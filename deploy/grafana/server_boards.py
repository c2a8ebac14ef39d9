"""Dashboards of the replay server: what flows through it and its Redis, and who calls it how."""

from deploy.grafana.board import Board, Panel, Query, Row, quantiles


def _rate(metric: str, legend: str, by: str = "") -> Query:
    return Query(f"sum {f'by ({by}) ' if by else ''}(rate({metric}[$__rate_interval]))", legend)


def _by_table(metric: str) -> tuple[Query, ...]:
    return (Query(f"sum by (table) ({metric})", "{{table}}"),)


def _slowest(what: str) -> Query:
    return Query(
        f"histogram_quantile(0.999, sum by (le) (rate(zero_replay_{what}_seconds_bucket[$__rate_interval])))", "p99.9"
    )


REPLAY = Board(
    "replay",
    "Zero: replay server",
    "What comes in, what is drawn, who waits, and how Redis and the disk are doing.",
    (
        Row(
            "Inserts",
            (
                Panel("Inserts by result", "ops", [_rate("zero_replay_inserts_total", "{{result}}", "result")]),
                Panel(
                    "Trajectories and steps",
                    "ops",
                    [
                        _rate("zero_replay_inserted_trajectories_total", "trajectories"),
                        _rate("zero_replay_inserted_steps_total", "steps"),
                    ],
                ),
                Panel("Bytes", "Bps", [_rate("zero_replay_inserted_bytes_total", "{{table}}", "table")]),
                Panel("Time of an insert", "s", [*quantiles("zero_replay_insert_seconds"), _slowest("insert")]),
                Panel(
                    "Time until it is durable",
                    "s",
                    [*quantiles("zero_replay_acknowledge_seconds"), _slowest("acknowledge")],
                    "Without what the rate limiter held it.",
                ),
                Panel("Time of a commit into Redis", "s", quantiles("zero_replay_redis_commit_seconds")),
                Panel(
                    "Sent again and not stored again",
                    "ops",
                    [_rate("zero_replay_duplicate_trajectories_total", "{{table}}", "table")],
                ),
                Panel(
                    "Refused, by reason",
                    "ops",
                    [_rate("zero_replay_rejected_requests_total", "{{reason}}", "reason")],
                    "The reasons are explained on the replay server's page.",
                ),
                Panel(
                    "Games dealt from one seed",
                    "short",
                    _by_table("zero_replay_duplicate_episode_seeds"),
                    "Stored now; above 0 two actors play the same games.",
                ),
            ),
        ),
        Row(
            "Samples",
            (
                Panel(
                    "Positions drawn",
                    "ops",
                    [
                        _rate("zero_replay_sampled_positions_total", "{{table}}", "table"),
                        _rate("zero_replay_peeked_positions_total", "{{table}}, only looked at", "table"),
                    ],
                ),
                Panel("Bytes", "Bps", [_rate("zero_replay_sampled_bytes_total", "{{table}}", "table")]),
                Panel("Time of a sample", "s", [*quantiles("zero_replay_sample_seconds"), _slowest("sample")]),
                Panel("Age of what is drawn", "s", quantiles("zero_replay_sample_age_seconds")),
                Panel(
                    "Versions that it is behind",
                    "short",
                    quantiles("zero_replay_sample_versions_behind"),
                ),
                Panel(
                    "Priorities and values replaced",
                    "ops",
                    [
                        _rate("zero_replay_priority_updates_total", "priorities {{result}}", "result"),
                        _rate("zero_replay_column_updates_total", "values {{result}}", "result"),
                    ],
                    "Gone: the step was evicted before its update came.",
                ),
                Panel("Sum of priorities", "short", _by_table("zero_replay_priority_mass")),
                Panel("Highest priority", "short", _by_table("zero_replay_max_priority")),
            ),
        ),
        Row(
            "Back-pressure",
            (
                Panel(
                    "Held by the rate limiter",
                    "percentunit",
                    [
                        _rate("zero_replay_insert_wait_seconds_total", "inserts"),
                        _rate("zero_replay_sample_wait_seconds_total", "samples"),
                    ],
                    "Calls that wait at any moment, on average.",
                ),
                Panel("Waiting now", "none", [Query("sum by (table, kind) (zero_replay_waiting_calls)", "{{kind}}")]),
                Panel(
                    "Rate limiter",
                    "short",
                    [
                        Query("max by (table) (zero_replay_limiter_difference)", "{{table}}: inserts ahead of samples"),
                        Query("max by (table) (zero_replay_limiter_error_buffer)", "{{table}}: the most"),
                        Query("-max by (table) (zero_replay_limiter_error_buffer)", "{{table}}: the least"),
                    ],
                    "At the upper end inserts wait, at the lower end samples do.",
                ),
                Panel(
                    "Bytes in flight",
                    "bytes",
                    [
                        Query("sum by (direction) (zero_replay_in_flight_bytes)", "{{direction}}"),
                        Query("max(zero_replay_max_in_flight_bytes)", "the most"),
                    ],
                ),
            ),
        ),
        Row(
            "What is stored",
            (
                Panel("Steps", "short", _by_table("zero_replay_steps")),
                Panel("Trajectories", "short", _by_table("zero_replay_trajectories")),
                Panel("Items that may be drawn", "short", _by_table("zero_replay_items")),
                Panel("Steps evicted", "ops", [_rate("zero_replay_evicted_steps_total", "{{table}}", "table")]),
                Panel(
                    "Trajectories removed, by cause",
                    "ops",
                    [_rate("zero_replay_removed_trajectories_total", "{{cause}}", "cause")],
                ),
                Panel(
                    "Memory",
                    "bytes",
                    [
                        Query('sum(process_resident_memory_bytes{role="replay_server"})', "of the server"),
                        Query("sum(zero_replay_table_memory_bytes)", "of full tables"),
                        Query("sum(zero_replay_memory_limit_bytes)", "the most"),
                    ],
                ),
                Panel("Last recovery took", "s", [Query("max(zero_replay_recovery_seconds)", "seconds")]),
                Panel(
                    "Since weights were published",
                    "s",
                    [Query("time() - max(zero_replay_weights_published_timestamp_seconds > 0)", "seconds")],
                ),
                Panel("Weights version", "none", [Query("max(zero_replay_weights_version)", "version")]),
            ),
        ),
        Row(
            "Redis",
            (
                Panel(
                    "Takes inserts",
                    "none",
                    [Query("min(zero_replay_store_available)", "1 is yes")],
                ),
                Panel(
                    "Flushes",
                    "none",
                    [Query("max by (appendfsync) (zero_replay_redis_info)", "appendfsync {{appendfsync}}")],
                    "Only `always` keeps what it acknowledged when the power fails.",
                ),
                Panel(
                    "Memory",
                    "bytes",
                    [
                        Query("sum(zero_replay_redis_memory_bytes)", "used"),
                        Query("sum(zero_replay_redis_max_memory_bytes)", "the most, 0 for no limit"),
                    ],
                ),
                Panel("Append-only file", "bytes", [Query("sum(zero_replay_redis_file_bytes)", "size")]),
                Panel(
                    "Trouble with the file",
                    "short",
                    [
                        Query("max(zero_replay_redis_write_failed)", "last write failed"),
                        Query(
                            "sum(increase(zero_replay_redis_delayed_fsyncs_total[$__rate_interval]))",
                            "writes that waited for a flush",
                        ),
                    ],
                    "Must be 0.",
                ),
                Panel(
                    "Disk of a private Redis",
                    "bytes",
                    [
                        Query("sum(zero_replay_disk_free_bytes)", "free"),
                        Query("sum(zero_replay_disk_bytes)", "size"),
                    ],
                ),
            ),
        ),
    ),
)

CALLS = Board(
    "calls",
    "Zero: gRPC and security",
    "Every call by method and outcome, and what of the server's security needs a look.",
    (
        Row(
            "Calls",
            (
                Panel("Started", "ops", [_rate("grpc_server_started_total", "{{grpc_method}}", "grpc_method")]),
                Panel("Ended, by code", "ops", [_rate("grpc_server_handled_total", "{{grpc_code}}", "grpc_code")]),
                Panel(
                    "Under way",
                    "none",
                    [
                        Query(
                            "sum by (grpc_method) (grpc_server_started_total) - "
                            "sum by (grpc_method) (grpc_server_handled_total)",
                            "{{grpc_method}}",
                        )
                    ],
                ),
                Panel(
                    "Time, p99 by method",
                    "s",
                    quantiles("grpc_server_handling_seconds", "{{grpc_method}}", "grpc_method")[1:],
                    "Of streams: how long they were open.",
                ),
                Panel(
                    "Messages received",
                    "ops",
                    [_rate("grpc_server_msg_received_total", "{{grpc_method}}", "grpc_method")],
                ),
                Panel("Messages sent", "ops", [_rate("grpc_server_msg_sent_total", "{{grpc_method}}", "grpc_method")]),
            ),
        ),
        Row(
            "Security",
            (
                Panel(
                    "Serves other machines without TLS or tokens",
                    "none",
                    [Query("max(zero_replay_insecure)", "1 is yes")],
                ),
                Panel(
                    "The certificate ends in",
                    "s",
                    [Query("min(zero_replay_certificate_expiry_timestamp_seconds) - time()", "infinite without one")],
                ),
                Panel(
                    "Files that cannot be used",
                    "none",
                    [Query("max by (kind) (zero_replay_stale_credentials)", "{{kind}}")],
                    "1 while a changed certificate or token file is broken and the earlier one stays in force.",
                ),
                Panel(
                    "Refused for want of a token",
                    "ops",
                    [_rate('zero_replay_rejected_requests_total{reason="UNAUTHENTICATED"}', "refused")],
                ),
                Panel(
                    "Open files of the server",
                    "none",
                    [
                        Query('max(process_open_fds{role="replay_server"})', "open"),
                        Query('max(process_max_fds{role="replay_server"})', "the most"),
                    ],
                ),
            ),
        ),
    ),
)

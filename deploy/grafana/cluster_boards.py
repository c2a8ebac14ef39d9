"""The dashboard of the Ray cluster that roles are placed on, out of what Ray itself exports."""

from deploy.grafana.board import Board, Panel, Query, Row

CLUSTER = Board(
    "cluster",
    "Zero: Ray cluster",
    "Whether Ray has room for the roles, and how its machines are doing. The data of a run never pass through Ray.",
    (
        Row(
            "Room",
            (
                Panel("Nodes", "none", [Query("sum(ray_cluster_active_nodes)", "active")]),
                Panel(
                    "CPUs, as Ray counts them",
                    "none",
                    [Query('sum by (State) (ray_resources{Name="CPU"})', "{{State}}")],
                    "A learner and each actor take one; none available means that further actors wait.",
                ),
                Panel("Ray actors", "none", [Query("sum by (State) (ray_gcs_actors_count)", "{{State}}")]),
                Panel("Jobs", "none", [Query("sum(ray_running_jobs)", "running")]),
                Panel(
                    "Requests that no machine can satisfy",
                    "none",
                    [Query("sum(ray_internal_num_infeasible_scheduling_classes)", "kinds of requests")],
                    "Above 0: no machine has the CPUs or the GPU that a role asks for.",
                ),
                Panel(
                    "Processes that did not start",
                    "none",
                    [Query("sum by (Reason) (ray_scheduler_failed_worker_startup_total)", "{{Reason}}")],
                ),
            ),
        ),
        Row(
            "Machines",
            (
                Panel("Processors", "percent", [Query("max by (ip) (ray_node_cpu_utilization)", "{{ip}}")]),
                Panel(
                    "Memory",
                    "percentunit",
                    [Query("max by (ip) (ray_node_mem_used) / max by (ip) (ray_node_mem_total)", "{{ip}}")],
                ),
                Panel("Disk", "percent", [Query("max by (ip) (ray_node_disk_utilization_percentage)", "{{ip}}")]),
                Panel("Sent", "Bps", [Query("max by (ip) (ray_node_network_send_speed)", "{{ip}}")]),
                Panel("Received", "Bps", [Query("max by (ip) (ray_node_network_receive_speed)", "{{ip}}")]),
            ),
        ),
        Row(
            "Ray itself",
            (
                Panel(
                    "Memory by component",
                    "bytes",
                    [Query("sum by (Component) (ray_component_rss_bytes)", "{{Component}}")],
                ),
                Panel(
                    "Object store",
                    "bytes",
                    [Query("sum(ray_object_store_used_memory)", "used")],
                    "Stays near 0.",
                ),
                Panel(
                    "Lag of the control store",
                    "ms",
                    [Query("max by (Name) (ray_io_context_event_loop_lag_ms)", "{{Name}}")],
                ),
            ),
        ),
    ),
    chooses_run=False,
)

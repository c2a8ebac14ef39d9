"""Prometheus metrics of a served agent."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

ROUTES = ("/", "/act", "/evaluate", "/game", "/health", "/metrics", "/version", "other")
CODES = ("2xx", "4xx", "5xx")


class ServeMetrics:
    """All series of one replica, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("zero_serve_requests", "Requests answered.", ["route", "code"], registry=self.registry)
        for route in ROUTES:
            for code in CODES:
                self.requests.labels(route, code)
        self.act_seconds = Histogram(
            "zero_serve_act_seconds",
            "Time to answer POST /act, the wait for earlier batches included.",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.positions = Counter("zero_serve_positions", "Positions decided on.", registry=self.registry)
        self.batch_positions = Histogram(
            "zero_serve_batch_positions",
            "Positions that were searched together.",
            buckets=(1, 4, 16, 64, 256, 1024),
            registry=self.registry,
        )
        self.evaluate_seconds = Histogram(
            "zero_serve_evaluate_seconds",
            "Time to answer POST /evaluate, the wait for earlier batches included.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
            registry=self.registry,
        )
        self.leaves = Counter("zero_serve_leaves", "Leaves evaluated for actors.", registry=self.registry)
        self.batch_leaves = Histogram(
            "zero_serve_batch_leaves",
            "Leaves that were evaluated together.",
            buckets=(16, 64, 256, 1024, 4096, 16384),
            registry=self.registry,
        )
        self.weights_version = Gauge(
            "zero_serve_weights_version",
            "Of the weights that decide; 0 for weights of the run's folder.",
            registry=self.registry,
        )
        self.training_step = Gauge(
            "zero_serve_training_step", "Optimizer updates of the weights that decide.", registry=self.registry
        )
        self.swaps = Counter("zero_serve_swaps", "Changes to other weights.", registry=self.registry)
        self.refused_weights = Counter(
            "zero_serve_refused_weights", "Weights of the run that could not be used.", registry=self.registry
        )

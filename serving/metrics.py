"""What Prometheus reads of a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("siglip_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.request_seconds = Histogram(
            "siglip_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        self.queue = Gauge("siglip_queue_items", "Items that wait for a worker.", ("kind",), registry=registry)
        self.wait_seconds = Histogram(
            "siglip_wait_seconds",
            "From an item's arrival to the start of its batch.",
            ("kind",),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_items = Histogram(
            "siglip_batch_items", "Items of a batch.", ("kind",), buckets=ITEMS, registry=registry
        )
        self.batch_seconds = Histogram(
            "siglip_batch_seconds", "A worker's time for a batch.", ("kind",), buckets=SECONDS, registry=registry
        )
        self.failed_items = Counter("siglip_failed_items", "Items without a vector.", ("kind",), registry=registry)
        self.worker_restarts = Counter(
            "siglip_worker_restarts", "Workers that died and were replaced.", registry=registry
        )
        self.workers_ready = Gauge("siglip_workers_ready", "Workers with a loaded model.", registry=registry)

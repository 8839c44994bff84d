"""For who watches the node: `/health` for anybody, `/metrics` for Prometheus.

Owns no figure: they are the status's, and the daemon's own counts. Invariant: `/health` tells a
stranger that the daemon answers, and nothing else.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.web.access import WATCH
from appliance.web.bridge import Workers
from appliance.web.routes import Route

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIGURES = {
    "studies": "Studies that are served",
    "instances": "Instances that are served",
    "pending_instances": "Instances whose only copy is here",
    "pending_bytes": "Bytes of packs whose only copy is here",
    "oldest_pending_age_s": "Age of the oldest pending pack in seconds",
    "cached_bytes": "Bytes of packs that are in the bucket and here",
    "capacity_bytes": "Bytes that packs may use on this disk",
    "time_to_full_s": "Seconds until pending packs fill the disk, at the present pace",
    "time_to_drain_s": "Seconds until the backlog is empty, at the present pace",
    "ledger_sequence": "The last entry of this node's ledger",
    "upload_rate_bytes_per_s": "Bytes a second that leave for the bucket",
    "throttle_bytes_per_s": "The rate that the timetable allows now",
}
_LINKS = ("up", "degraded", "down", "unknown")


class _Figures(Collector):
    """One look at the status, as metrics."""

    def __init__(self, status: dict[str, Any], own: dict[str, float]) -> None:
        self._status = status
        self._own = own

    def collect(self) -> Iterator[Metric]:
        for name, help_text in _FIGURES.items():
            value = self._status.get(name)
            if value is not None:
                yield GaugeMetricFamily(f"azekura_{name}", help_text, value=float(value))
        link = GaugeMetricFamily("azekura_link", "The state of the link", labels=["state"])
        for state in _LINKS:
            link.add_metric([state], 1.0 if self._status.get("link") == state else 0.0)
        yield link
        problems = GaugeMetricFamily(
            "azekura_problems", "Problems by condition", labels=["condition"]
        )
        found: dict[str, int] = {}
        for each in self._status.get("problems", []):
            found[each["condition"]] = found.get(each["condition"], 0) + 1
        for condition, count in found.items():
            problems.add_metric([condition], float(count))
        yield problems
        for name, value in self._own.items():
            yield GaugeMetricFamily(f"azekura_web_{name}", f"Web daemon: {name}", value=value)

    def describe(self) -> Iterable[Metric]:
        return ()


class WatchService:
    """Answers `/health` and `/metrics`; `own` gives the daemon's counts."""

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        own: Callable[[], dict[str, float]],
        workers: Workers,
    ) -> None:
        self._status = status
        self._own = own
        self._workers = workers

    def routes(self) -> list[Route]:
        """Return both routes."""
        return [
            Route("health", "GET", ("/health",), "", self.health),
            Route("metrics", "GET", ("/metrics",), WATCH, self.metrics),
        ]

    async def health(self, _request: web.Request) -> web.StreamResponse:
        """Say that the daemon answers."""
        return web.json_response({"status": "ok"})

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        """Return the figures in Prometheus's text format."""
        status = await self._workers.call(self._status)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Figures(status, self._own()))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE})

"""`azekura web`: DICOMweb over HTTPS.

Puts the archive together for one process and runs the server over it. A cloud that can't be
reached, or an index that is being made anew, keeps it from nothing but what needs them.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from appliance.archive.freshness import Freshness
from appliance.archive.queries import Queries
from appliance.archive.status import node_status
from appliance.archive.tokens import TokenBook, Tokens
from appliance.config.model import Config
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, notify
from appliance.foundation import log
from appliance.web.access import Access
from appliance.web.bridge import Workers
from appliance.web.routes import Route
from appliance.web.search import SearchService
from appliance.web.server import WebServer
from appliance.web.tls import ServerTls
from appliance.web.watching import WatchService

_log = log.get("web")


def run(config: Config) -> int:
    """Run until stopped; return the exit code."""
    running = Running()
    running.install()
    with contextlib.ExitStack() as stack:
        parts = Parts(config, open_index=False)
        stack.callback(parts.close)
        if not parts.try_index():
            _log.error("index_unusable")
        tls = ServerTls(config, parts.files, parts.clock, parts.layout.web)
        tokens = Tokens(parts.files, parts.clock, parts.layout)
        access = Access(config, TokenBook(tokens, parts.clock), parts.clock)
        server = WebServer(
            config.web.host, config.web.port, tls, access, _routes(parts, access), running.fatal
        )
        server.start()
        stack.callback(server.stop)
        notify("READY=1")
        return running.wait(tls.refresh)


def _routes(parts: Parts, access: Access) -> Callable[[Workers], list[Route]]:
    """Return what makes the routes once the server has its threads."""
    config = parts.config
    queries = Queries(config, parts.index, Freshness(parts.layout))

    def status() -> dict[str, Any]:
        return node_status(config, parts.layout, parts.index, parts.clock, parts.condition)

    def own() -> dict[str, float]:
        return {"access_failures": float(access.failures_count)}

    def make(workers: Workers) -> list[Route]:
        return [
            *SearchService(queries, workers, config.dicom.ae_title).routes(),
            *WatchService(status, own, workers).routes(),
        ]

    return make

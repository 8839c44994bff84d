"""`azekura web`: DICOMweb over HTTPS.

Puts the archive together for one process and runs the server over it. A cloud that can't be
reached, or an index that is being made anew, keeps it from nothing but what needs them.
"""

import contextlib
from typing import Any

from appliance.archive.accepting import Accepting
from appliance.archive.adopted import adopted_by, read_sources
from appliance.archive.damage_report import reporter
from appliance.archive.freshness import Freshness
from appliance.archive.headers import Headers
from appliance.archive.ingest import Ingest
from appliance.archive.queries import Queries
from appliance.archive.recall import Recaller
from appliance.archive.requests import RequestBox
from appliance.archive.retrieval import Retrieval
from appliance.archive.status import node_status
from appliance.archive.tokens import TokenBook, Tokens
from appliance.config.model import Config
from appliance.daemons.liveness import FLUSH_SILENT_MAX_S, TURN_SILENT_MAX_S
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, notify
from appliance.dicom.uid import stored_sop_classes
from appliance.foundation import log
from appliance.foundation.errors import CloudError
from appliance.pixels.transcode import Transcoder
from appliance.remote.store import ObjectStore
from appliance.web.access import Access
from appliance.web.bridge import Workers
from appliance.web.frames import FrameService
from appliance.web.metadata import MetadataService
from appliance.web.rendered import RenderService
from appliance.web.retrieve import Delivery, RetrieveService
from appliance.web.routes import Route
from appliance.web.search import SearchService
from appliance.web.server import WebServer
from appliance.web.store import StoreService
from appliance.web.tls import ServerTls
from appliance.web.wado_uri import WadoUriService
from appliance.web.watching import WatchService

WRITER = "web"
BELIEVED_S = 60.0
"""For how long a large instance that was found right is not read again before each frame."""

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
        ingest = Ingest(
            parts.files, parts.clock, parts.layout, WRITER, config.packs, parts.index,
            parts.space(), running.fatal,
            running.liveness.beat("pack-closer", FLUSH_SILENT_MAX_S),
        )  # fmt: skip
        stack.callback(ingest.stop)
        ingest.start()
        face = DicomWeb(parts, ingest)
        stack.callback(face.close)
        server = WebServer(
            config.web.host, config.web.port, tls, face.access, face.routes, running.fatal,
            running.liveness.beat("web", TURN_SILENT_MAX_S),
        )  # fmt: skip
        server.start()
        stack.callback(server.stop)
        running.liveness.watch([ingest.thread, server.thread])
        notify("READY=1")

        def tick() -> None:
            tls.refresh()
            face.refresh()

        return running.wait(tick)


class DicomWeb:
    """The services of DICOMweb over one archive; made and refreshed by the main thread."""

    def __init__(self, parts: Parts, ingest: Ingest) -> None:
        self._parts = parts
        self._ingest = ingest
        self._sources = read_sources(parts.layout)
        self._config = adopted_by(parts.config, parts.layout).config
        store = _store(parts)
        recaller = None
        report = reporter(RequestBox(parts.files, parts.layout.requests), "read")
        if store is not None:
            recaller = Recaller(
                parts.files, parts.clock, parts.layout, store, parts.index, parts.space(), report
            )
        self._retrieval = Retrieval(
            parts.clock, parts.layout, parts.index, recaller, report, BELIEVED_S
        )
        self._headers = Headers(parts.layout, parts.index, self._retrieval, store)
        self._queries = Queries(self._config, parts.index, Freshness(parts.layout))
        self._transcoder = Transcoder()
        tokens = Tokens(parts.files, parts.clock, parts.layout)
        self.access = Access(self._config, TokenBook(tokens, parts.clock), parts.clock)

    def close(self) -> None:
        """End its threads and workers."""
        self._headers.close()
        self._retrieval.close()
        self._transcoder.close_idle()

    def refresh(self) -> None:
        """Let evicted packs go; take what the sites of a standby have published."""
        self._retrieval.sweep()
        sources = read_sources(self._parts.layout)
        if sources != self._sources:
            self._sources = sources
            config = adopted_by(self._parts.config, self._parts.layout).config
            self._queries.take(config.dicom)
            self.access.take(config.dicom)
            _log.info("configuration_taken", peers=len(config.dicom.peers))

    def routes(self, workers: Workers) -> list[Route]:
        """Return the routes, once the server has its threads."""
        title = self._config.dicom.ae_title
        queries, retrieval = self._queries, self._retrieval
        instances = RetrieveService(queries, retrieval, Delivery(self._transcoder), workers)
        pictures = RenderService(queries, retrieval, self._transcoder, workers)
        classes = frozenset(stored_sop_classes(self._config.dicom.extra_sop_classes))
        gate = Accepting(self._parts.layout, self._parts.clock, self._parts.config)
        return [
            *SearchService(queries, workers, title).routes(),
            *instances.routes(),
            *MetadataService(queries, self._headers, retrieval, workers).routes(),
            *FrameService(queries, retrieval, self._transcoder, workers).routes(),
            *pictures.routes(),
            *WadoUriService(instances, pictures).routes(),
            *StoreService(self._ingest, gate, classes, title, workers).routes(),
            *WatchService(self._status, self._own, workers).routes(),
        ]

    def _status(self) -> dict[str, Any]:
        parts = self._parts
        return node_status(parts.config, parts.layout, parts.index, parts.clock, parts.condition)

    def _own(self) -> dict[str, float]:
        return {"access_failures": float(self.access.failures_count)}


def _store(parts: Parts) -> ObjectStore | None:
    try:
        return parts.reading_store()
    except CloudError as error:
        _log.error("no_recall", error=type(error).__name__, cause=error.cause)
        return None

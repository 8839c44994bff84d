"""What speaks DICOM in the receiver: the services, the acceptor over them, and the reporter.

Owns how they are put together, and puts new services in their place when a standby's sites have
published another configuration: associations that are open keep theirs.
"""

import socket
import threading
from collections.abc import Callable, Sequence

from appliance.archive.accepting import Accepting
from appliance.archive.adopted import adopted_by, read_sources
from appliance.archive.archive import Archive
from appliance.archive.commitment import CommitmentBook
from appliance.archive.freshness import Freshness
from appliance.archive.ingest import Ingest
from appliance.archive.queries import Queries
from appliance.archive.requests import RequestBox
from appliance.archive.retrieval import Retrieval
from appliance.archive.urgency import hurry
from appliance.config.model import Config
from appliance.daemons.inherited import assign
from appliance.daemons.liveness import TURN_SILENT_MAX_S
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running
from appliance.dimse.acceptor import Acceptor
from appliance.dimse.commitment import commitment_service
from appliance.dimse.find import find_service
from appliance.dimse.get import get_service
from appliance.dimse.move import move_service
from appliance.dimse.reporter import Reporter
from appliance.dimse.service import Service
from appliance.dimse.storage import storage_service
from appliance.dimse.tls import client_context
from appliance.dimse.verification import verification_service
from appliance.foundation import log
from appliance.pixels.transcode import Transcoder

DRAIN_TIMEOUT_S = 20.0
LOOK_S = 1.0

_log = log.get("receive")


class Edge:
    """The DICOM edge of one receiver; started and stopped by its main thread."""

    def __init__(
        self,
        parts: Parts,
        running: Running,
        ingest: Ingest,
        retrieval: Retrieval,
        listeners: list[socket.socket],
    ) -> None:
        """Put it together; `listeners`: sockets that the service manager passed on, if it did."""
        self._parts = parts
        self._running = running
        self._sources = read_sources(parts.layout)
        config = adopted_by(parts.config, parts.layout).config
        self._commitments = CommitmentBook(
            parts.files, parts.layout.commitment, parts.clock, parts.reached, _hurrying(parts)
        )
        self._queries = Queries(config, parts.index, Freshness(parts.layout))
        self._archive = Archive(ingest, self._queries, retrieval, self._commitments)
        self._accepting = Accepting(parts.layout, parts.clock, config)
        self._transcoder = Transcoder()
        self._tls = client_context(config.dicom.tls) if config.dicom.tls else None
        self._reporter = Reporter(
            self._commitments, config.dicom, parts.clock, running.fatal, tls=self._tls
        )
        dicom, liveness = config.dicom, running.liveness
        ports = [dicom.port, *([dicom.tls.port] if dicom.tls else [])]
        plain, *over_tls = assign(listeners, dicom.host, ports)
        self._acceptor = Acceptor(
            config, self._services(config), running.fatal,
            listener=plain, tls_listener=over_tls[0] if over_tls else None,
            on_turn=liveness.beat("dimse-acceptor", TURN_SILENT_MAX_S),
        )  # fmt: skip
        self._beat = liveness.beat("configuration", TURN_SILENT_MAX_S)
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._run_watch, name="configuration")

    def start(self) -> None:
        """Listen, answer and report."""
        self._reporter.start()
        self._acceptor.start()
        self._watch.start()
        self._running.liveness.watch([self._reporter.thread, self._acceptor.thread, self._watch])

    def stop(self) -> None:
        """Let open associations end for a while, then end the rest."""
        self._stop.set()
        if self._watch.ident is not None:
            self._watch.join()
        self._acceptor.stop(0.0 if self._running.exit_code else DRAIN_TIMEOUT_S)
        self._reporter.stop()
        self._transcoder.close_idle()

    def _services(self, config: Config) -> list[Service]:
        dicom = config.dicom
        return [
            verification_service(),
            storage_service(
                self._archive,
                default_issuer=dicom.issuer,
                extra_sop_classes=dicom.extra_sop_classes,
                gate=self._accepting,
            ),
            find_service(self._archive),
            move_service(self._archive, dicom, self._transcoder, tls=self._tls),
            get_service(self._archive, self._transcoder),
            commitment_service(self._commitments, self._reporter),
        ]

    def _run_watch(self) -> None:
        """Take what the sites publish, for new associations."""
        while not self._parts.clock.wait(self._stop, LOOK_S):
            self._beat()
            try:
                self._take_changes()
            except Exception as error:  # noqa: BLE001 - the boundary of a thread
                _log.error("configuration_not_taken", error=log.where(error))

    def _take_changes(self) -> None:
        sources = read_sources(self._parts.layout)
        if sources == self._sources:
            return
        self._sources = sources
        config = adopted_by(self._parts.config, self._parts.layout).config
        self._queries.take(config.dicom)
        self._reporter.take(config.dicom)
        self._acceptor.take(config.dicom, self._services(config))
        _log.info("configuration_taken", peers=len(config.dicom.peers))


def _hurrying(parts: Parts) -> Callable[[Sequence[str]], None]:
    """Return what the commitment book calls with instances that wait for their rung."""
    requests = RequestBox(parts.files, parts.layout.requests)

    def on_waiting(sop_instance_uids: Sequence[str]) -> None:
        with parts.index.read() as view:
            hurry(view, requests, sop_instance_uids, "commitment")

    return on_waiting

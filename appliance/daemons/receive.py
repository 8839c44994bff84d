"""`azekura receive`: the DIMSE daemon. Receives, answers queries, sends, commits.

Puts the archive together for one process and runs the acceptor over it. A cloud that can't be
reached, or keys that can't be read, do not keep it from receiving.
"""

import os

from appliance.archive.archive import Archive
from appliance.archive.commitment import CommitmentBook
from appliance.archive.freshness import Freshness
from appliance.archive.ingest import Ingest
from appliance.archive.queries import Queries
from appliance.archive.recall import Recaller
from appliance.archive.retrieval import Retrieval
from appliance.config.model import Config
from appliance.daemons.child import Child
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, notify
from appliance.dimse.acceptor import Acceptor
from appliance.dimse.commitment import commitment_service
from appliance.dimse.find import find_service
from appliance.dimse.get import get_service
from appliance.dimse.move import move_service
from appliance.dimse.reporter import Reporter
from appliance.dimse.storage import storage_service
from appliance.dimse.tls import client_context
from appliance.dimse.transcode import Transcoder
from appliance.dimse.verification import verification_service
from appliance.foundation import log
from appliance.foundation.errors import CloudError

DRAIN_TIMEOUT_S = 20.0
WRITER = "receive"

_log = log.get("receive")


def run(config: Config, config_path: str, *, log_json: bool = True) -> int:
    """Run until stopped; return the exit code."""
    running = Running()
    running.install()
    parts = Parts(config)
    space = parts.space()
    ingest = Ingest(
        parts.files, parts.clock, parts.layout, WRITER, config.packs, parts.index, space,
        running.fatal,
    )  # fmt: skip
    retrieval = Retrieval(parts.clock, parts.layout, parts.index, _recaller(parts))
    commitments = CommitmentBook(parts.files, parts.layout.commitment, parts.clock, parts.reached)
    archive = Archive(
        ingest, Queries(config, parts.index, Freshness(parts.layout)), retrieval, commitments
    )
    transcoder = Transcoder()
    tls = client_context(config.dicom.tls) if config.dicom.tls else None
    reporter = Reporter(commitments, config.dicom, parts.clock, running.fatal, tls=tls)
    services = [
        verification_service(),
        storage_service(
            archive,
            default_issuer=config.dicom.issuer,
            extra_sop_classes=config.dicom.extra_sop_classes,
        ),
        find_service(archive),
        move_service(archive, config.dicom, transcoder, tls=tls),
        get_service(archive, transcoder),
        commitment_service(commitments, reporter),
    ]
    acceptor = Acceptor(config, services, running.fatal)
    arguments = ["--config", config_path, "--parent", str(os.getpid())]
    indexer = Child(
        "indexer",
        "appliance.daemons.indexer",
        [*arguments, "--log-json"] if log_json else arguments,
    )
    ingest.start()
    indexer.start()
    reporter.start()
    acceptor.start()
    notify("READY=1")
    try:
        return running.wait(retrieval.sweep)
    finally:
        acceptor.stop(DRAIN_TIMEOUT_S if running.exit_code == 0 else 0.0)
        reporter.stop()
        ingest.stop()
        indexer.stop()
        transcoder.close_idle()
        retrieval.close()
        parts.close()


def _recaller(parts: Parts) -> Recaller | None:
    try:
        store = parts.store()
    except CloudError as error:
        _log.error("no_recall", error=type(error).__name__, cause=error.cause)
        return None
    return Recaller(parts.files, parts.layout, store, parts.index, parts.space())

"""`azekura receive`: the DIMSE daemon. Receives, answers queries, sends, commits.

Puts the archive together for one process and runs the acceptor over it. A cloud that can't be
reached, or keys that can't be read, do not keep it from receiving. Several may run on one data
directory, each with a writer's name and a port of its own.
"""

import contextlib
import os
import re

from appliance.archive.damage_report import Report, reporter
from appliance.archive.ingest import Ingest
from appliance.archive.recall import Recaller
from appliance.archive.requests import RequestBox
from appliance.archive.retrieval import Retrieval
from appliance.config.model import Config
from appliance.daemons.child import Child
from appliance.daemons.edge import Edge
from appliance.daemons.inherited import take_listeners
from appliance.daemons.liveness import FLUSH_SILENT_MAX_S
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, notify
from appliance.foundation import log
from appliance.foundation.errors import CloudError, UsageError

WRITER = "receive"
_WRITER = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

_log = log.get("receive")


def run(
    config: Config, config_path: str, *, writer: str = WRITER, port: int = 0, log_json: bool = True
) -> int:
    """Run until stopped; return the exit code.

    `writer` names the folder of open packs that is this process's own; `port` overrides the
    configured one.
    """
    running = Running()
    running.install()
    listeners = take_listeners()
    if not _WRITER.fullmatch(writer):
        raise UsageError("receive", writer, "a writer's name has small letters, digits, hyphens")
    if port:
        dicom = config.dicom.model_copy(update={"port": port})
        config = config.model_copy(update={"dicom": dicom})
    with contextlib.ExitStack() as stack:
        parts = Parts(config, open_index=False)
        stack.callback(parts.close)
        # An index that can't be used keeps nothing from being received; the indexer makes it anew.
        if not parts.try_index():
            _log.error("index_unusable")
        report = reporter(RequestBox(parts.files, parts.layout.requests), "read")
        recaller = _recaller(parts, report)
        retrieval = Retrieval(parts.clock, parts.layout, parts.index, recaller, report)
        stack.callback(retrieval.close)
        ingest = Ingest(
            parts.files, parts.clock, parts.layout, writer, config.packs, parts.index,
            parts.space(), running.fatal,
            running.liveness.beat("pack-closer", FLUSH_SILENT_MAX_S),
        )  # fmt: skip
        indexer = Child("indexer", "appliance.daemons.indexer", _arguments(config_path, log_json))
        # The indexer ends last: it takes in what was closed last.
        stack.callback(indexer.stop)
        stack.callback(ingest.stop)
        ingest.start()
        indexer.start()
        edge = Edge(parts, running, ingest, retrieval, listeners)
        stack.callback(edge.stop)
        edge.start()
        running.liveness.watch([ingest.thread, indexer.thread])
        notify("READY=1")
        return running.wait(retrieval.sweep)


def _arguments(config_path: str, log_json: bool) -> list[str]:
    arguments = ["--config", config_path, "--parent", str(os.getpid())]
    return [*arguments, "--log-json"] if log_json else arguments


def _recaller(parts: Parts, report: Report) -> Recaller | None:
    try:
        store = parts.reading_store()
    except CloudError as error:
        _log.error("no_recall", error=type(error).__name__, cause=error.cause)
        return None
    return Recaller(
        parts.files, parts.clock, parts.layout, store, parts.index, parts.space(), report
    )

"""The indexer process: a child of the receiver, of low priority, that follows its packs.

It alone sets a damaged index aside and makes it anew: one thread follows the packs into whatever
index is current, another rebuilds one that is not whole.
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from functools import partial

from appliance.archive.index_repair import IndexRepair
from appliance.archive.indexer import Indexer
from appliance.archive.rebuild import Counts, rebuild
from appliance.archive.requests import RequestBox
from appliance.config.load import load
from appliance.config.model import Config
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, die_with_parent
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, Busy, CloudError, IndexDamaged
from appliance.foundation.files import FileLock
from appliance.remote.store import ObjectStore

NICE = 5
POLL_S = 0.1
DAMAGED_POLL_S = 1.0

_log = log.get("indexer")


def run(config: Config) -> int:
    """Index until told to stop; return the exit code."""
    running = Running()
    running.install()
    parts = Parts(config, open_index=False)
    flock = FileLock(os.path.join(parts.layout.index, "indexer.lock"))
    if not _alone(flock, running):
        return running.exit_code
    repair = IndexRepair(
        parts.clock, parts.layout, parts.index, parts.condition, config.node.name,
        partial(_rebuild, parts), parts.entry_copies(),
    )  # fmt: skip
    interrupt = threading.Event()
    repairer = threading.Thread(
        target=_run_repair, args=(repair, running, interrupt), name="index-repair"
    )
    repairer.start()
    try:
        while not running.stop.is_set():
            interrupt.clear()
            _follow(parts, repair, running, interrupt)
    except AzekuraError as error:
        running.fatal(error)
    finally:
        running.stop.set()
        repairer.join()
        parts.close()
        flock.release()
    return running.exit_code


def _follow(
    parts: Parts, repair: IndexRepair, running: Running, interrupt: threading.Event
) -> None:
    """Follow the packs into one index, until told to stop or until that one can't be used."""
    if not repair.open():
        parts.clock.wait(running.stop, DAMAGED_POLL_S)
        return
    if running.stop.is_set():
        return  # after `interrupt` was cleared: a signal in between is not lost
    node = parts.config.node.name
    requests = RequestBox(parts.files, parts.layout.requests)
    try:
        Indexer(parts.clock, parts.layout, parts.index, node, requests).run(interrupt)
    except IndexDamaged as error:
        _log.error("index_damaged", cause=error.cause)
    if not running.stop.is_set() and not repair.set_aside():
        parts.clock.wait(running.stop, DAMAGED_POLL_S)


def _run_repair(repair: IndexRepair, running: Running, interrupt: threading.Event) -> None:
    try:
        repair.run(running.stop, interrupt)
    except Exception as error:  # noqa: BLE001 - the boundary of a thread
        _log.critical("index_repair_failed", error=log.where(error))
        running.exit_code = 1
        running.stop.set()
    finally:
        interrupt.set()


def _rebuild(parts: Parts, advance: Callable[[float], None]) -> Counts:
    store: ObjectStore | None
    try:
        store = parts.reading_store()
    except CloudError as error:
        _log.warning("ledger_only_from_disk", error=type(error).__name__)
        store = None
    return rebuild(
        parts.layout, parts.index, parts.config.node.name, parts.identities(), store, advance,
        parts.other_ledgers(store),
    )  # fmt: skip


def _alone(flock: FileLock, running: Running) -> bool:
    """Wait until no other indexer is at work; False when told to stop before."""
    while not running.stop.is_set():
        try:
            flock.acquire()
        except Busy:
            running.stop.wait(POLL_S)
        else:
            return True
    return False


def main() -> None:
    """Run as a child process."""
    parser = argparse.ArgumentParser(prog="azekura-indexer")
    parser.add_argument("--config", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--log-json", action="store_true")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    os.nice(NICE)
    log.configure(json_lines=arguments.log_json)
    sys.exit(run(load(arguments.config)))


if __name__ == "__main__":
    main()

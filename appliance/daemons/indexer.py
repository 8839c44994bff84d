"""The indexer process: a child of the receiver, of low priority, that follows its packs."""

import argparse
import os
import sys

from appliance.archive.indexer import Indexer
from appliance.archive.requests import RequestBox
from appliance.config.load import load
from appliance.config.model import Config
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, die_with_parent
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, Busy
from appliance.foundation.files import FileLock

NICE = 5
POLL_S = 0.1


def run(config: Config) -> int:
    """Index until told to stop; return the exit code."""
    running = Running()
    running.install()
    parts = Parts(config)
    flock = FileLock(os.path.join(parts.layout.index, "indexer.lock"))
    if not _alone(flock, running):
        return running.exit_code
    indexer = Indexer(
        parts.clock,
        parts.layout,
        parts.index,
        config.node.name,
        RequestBox(parts.files, parts.layout.requests),
    )
    try:
        indexer.run(running.stop)
    except AzekuraError as error:
        running.fatal(error)
    finally:
        parts.close()
        flock.release()
    return running.exit_code


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

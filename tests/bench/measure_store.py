"""C-STORE: rates with one and four associations, large and small, and with a stalling sender."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench import senders
from tests.bench.datasets import make_study
from tests.bench.peers import Peer, peak_memory_bytes

LARGE, SMALL = 512, 64
COUNT = 1000
RUNS = 3
STALL_COUNT = 100

Peers = dict[str, Callable[[], AbstractContextManager[Peer]]]
Rates = dict[tuple[str, str], float]


def measure(folder: Path, peers: Peers, count: int = COUNT, runs: int = RUNS) -> Rates:
    """Return instances a second by (what, peer): the median of the runs, peers in turn."""
    studies = {
        (size, parts): [
            make_study(folder / "sent", size, count, 10 * run + parts, parts) for run in range(runs)
        ]
        for size in (LARGE, SMALL)
        for parts in (1, 4)
    }
    stalled = make_study(folder / "sent", SMALL, STALL_COUNT, 900)
    rates: Rates = {}
    for name, start in peers.items():
        with start() as peer:
            senders.store(peer.port, make_study(folder / "sent", SMALL, 20, 901))
            for (size, parts), runs_of in studies.items():
                took_s = [senders.store(peer.port, folders) for folders in runs_of]
                rates[_label(size, parts), name] = count / statistics.median(took_s)
            took_s = [senders.store(peer.port, stalled, nodelay=False)]
            rates["C-STORE 9 kB, sender with Nagle on", name] = STALL_COUNT / took_s[0]
            rates["peak memory, MB", name] = peak_memory_bytes(peer.pid) / 1e6
    return rates


def _label(size: int, parts: int) -> str:
    kind = "525 kB" if size == LARGE else "9 kB"
    return f"C-STORE {kind}, {parts} association{'s' if parts > 1 else ''}"

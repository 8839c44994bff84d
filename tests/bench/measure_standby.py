"""A standby from an empty disk: how fast a ledger in the bucket becomes an index that answers.

The ledger is made, its entries are real: signed, sealed by age, put into the bucket. The standby is
`azekura receive` and `azekura uplink` as processes; queries go on while it catches up.
"""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from appliance.archive.ledger_entry import entry_key
from appliance.foundation.clock import SystemClock
from appliance.remote.embedded import EmbeddedS3
from appliance.remote.s3 import S3Store
from appliance.seal.signing import SigningKey
from tests.bench import client, index_bench
from tests.support.made_ledger import MadeLedger, pack_record, put_object
from tests.support.node import Node
from tests.support.node_status import applied, status_of
from tests.support.s3_fixture import unlimited

INSTANCES_PER_PACK = 200
PACKS_PER_ENTRY = 2
SITE = "site-a"
QUERY_EVERY_S = 0.1
QUERIES_AFTER = 300
PUTS = 8
LEVEL, STUDY_UID, PATIENT_NAME = 0x00080052, 0x0020000D, 0x00100010


class Measured(NamedTuple):
    """What one cold start took. Memory is the uplink's peak; percentiles are of C-FIND."""

    instances_per_s: float
    memory_mb: float
    catching_up_p99_ms: float
    caught_up_p99_ms: float


def entries(ledger: MadeLedger, instance_count: int) -> Iterator[tuple[int, bytes]]:
    """Yield a ledger that lists so many instances: sequence and object of each entry."""
    studies = instance_count // INSTANCES_PER_PACK
    for start in range(0, studies, PACKS_PER_ENTRY):
        some = range(start, min(start + PACKS_PER_ENTRY, studies))
        yield ledger.next(
            [pack_record(index_bench.facts_of(it, studies, INSTANCES_PER_PACK)) for it in some]
        )


def _write(store: S3Store, ledger: MadeLedger, instance_count: int) -> None:
    with ThreadPoolExecutor(PUTS) as pool:
        waiting = [
            pool.submit(put_object, store, entry_key(ledger.node, sequence), sealed)
            for sequence, sealed in entries(ledger, instance_count)
        ]
        for each in waiting:
            each.result()


def measure(folder: Path, server: EmbeddedS3, bucket: str, instance_count: int) -> Measured:
    """Write a ledger, start a standby, ask it until it knows everything and after."""
    folder.mkdir(parents=True)
    key = SigningKey.create(str(folder / "site.pem"))
    standby = Node(
        folder / "standby", server, bucket, "standby/", name="standby-1", role="standby",
        signers={SITE: key.public_text}, writes=False, capacity="100 GiB",
    )  # fmt: skip
    ledger = MadeLedger(SITE, key, [standby.recipient])
    store = S3Store(server.settings(bucket, prefix="standby/"), unlimited(), SystemClock())
    _write(store, ledger, instance_count)
    standby.start("receive")
    try:
        _ask(standby, instance_count, 1)  # waits until the indexer runs
        began_s = time.perf_counter()
        standby.start("uplink")
        meanwhile = _ask_until_caught_up(standby, ledger.sequence, instance_count)
        took_s = time.perf_counter() - began_s
        memory_mb = _peak_memory_mb(standby.processes["uplink"].pid)
        after = _ask(standby, instance_count, QUERIES_AFTER)
        assert status_of(standby)["instances"] == instance_count
    finally:
        standby.stop()
    return Measured(instance_count / took_s, memory_mb, _p99_ms(meanwhile), _p99_ms(after))


def _ask_until_caught_up(standby: Node, last: int, instance_count: int) -> list[float]:
    took_s: list[float] = []
    while applied(status_of(standby), SITE) < last:
        took_s += _ask(standby, instance_count, 10, QUERY_EVERY_S)
    return took_s


def _ask(standby: Node, instance_count: int, count: int, pause_s: float = 0.0) -> list[float]:
    studies = instance_count // INSTANCES_PER_PACK
    source = random.Random(7)
    kinds = list(index_bench.queries(studies).values())
    association = client.connect(standby.port)
    took_s = []
    for number in range(count):
        keys = kinds[number % len(kinds)](source)
        asked = {index_bench.TAGS[name]: value for name, value in keys.items()}
        wanted = {LEVEL: "STUDY", STUDY_UID: "", PATIENT_NAME: ""} | asked
        took_s.append(client.find(association, wanted)[1])
        time.sleep(pause_s)
    association.release()
    return took_s


def _p99_ms(took_s: list[float]) -> float:
    return 1000 * sorted(took_s)[int(len(took_s) * 0.99)] if took_s else 0.0


def _peak_memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")

"""C-MOVE and C-GET of a cached CT; recall of an evicted one beside raw GETs of the same bytes."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import boto3
import urllib3

from appliance.archive.studies import study_packs
from appliance.config.load import load
from appliance.daemons.parts import Parts
from appliance.remote.embedded import EmbeddedS3
from appliance.seal.age import SEALED_CHUNK_BYTES
from tests.bench import client, senders
from tests.bench.datasets import make_study, study_uid
from tests.bench.measure_store import LARGE, Peers, Rates
from tests.bench.peers import Peer, storescp
from tests.support.node import Node

COUNT = 1000
RUNS = 3
RECALL_RUN = 2000
LINE_DELAY_S = 0.005
RAW_PART_BYTES = 4 * 2**20
RAW_THREADS = 6


def measure(
    folder: Path, peers: Peers, destination_port: int, count: int = COUNT, runs: int = RUNS
) -> Rates:
    """Return instances a second by (what, peer) for a cached study; peers in turn."""
    rates: Rates = {}
    run = 700
    sent = make_study(folder / "sent", LARGE, count, run)
    study = study_uid(LARGE, run)
    for name, start in peers.items():
        with start() as peer, _sink(folder, destination_port):
            senders.store(peer.port, sent)
            move_s = [senders.move(peer.port, study) for _ in range(runs)]
            get_s = [senders.get(peer.port, study) for _ in range(runs)]
            rates["C-MOVE 1,000 × 525 kB", name] = count / statistics.median(move_s)
            rates["C-GET 1,000 × 525 kB", name] = count / statistics.median(get_s)
    return rates


def _sink(folder: Path, port: int) -> AbstractContextManager[Peer]:
    return storescp(folder / "sink", "--ignore", port=port)


class Recall:
    """What a recall took, and the raw GETs of the same bytes, in seconds."""

    def __init__(self) -> None:
        self.first_s: list[float] = []
        self.whole_s: list[float] = []
        self.raw_first_s: list[float] = []
        self.raw_whole_s: list[float] = []

    @property
    def first_ratio(self) -> float:
        """First instance, as a multiple of one raw ranged GET of that instance's chunks."""
        return statistics.median(self.first_s) / statistics.median(self.raw_first_s)

    @property
    def whole_ratio(self) -> float:
        """Rate of the whole recall, as a part of the rate of raw parallel GETs."""
        return statistics.median(self.raw_whole_s) / statistics.median(self.whole_s)


def measure_recall(
    folder: Path, server: EmbeddedS3, node: Node, count: int = COUNT, runs: int = RUNS
) -> Recall:
    """Evict and fetch a CT, and fetch its objects raw, in turns. The node runs."""
    sent = make_study(folder / "sent", LARGE, count, RECALL_RUN + count)
    study = study_uid(LARGE, RECALL_RUN + count)
    senders.store(node.port, sent)
    node.drain()
    found = Recall()
    parts = Parts(load(str(node.config_path)))
    try:
        for _ in range(runs):
            node.azekura("study", "evict", study)
            _raw(parts, server, node, study, found)
            _recalled(node.port, study, found, count)
            node.azekura("study", "recall", study)
    finally:
        parts.close()
    return found


def _raw(parts: Parts, server: EmbeddedS3, node: Node, study: str, found: Recall) -> None:
    """Fetch the study's objects by plain HTTP ranged GETs of presigned addresses."""
    assert server.credentials is not None
    signer = boto3.client(
        "s3", endpoint_url=node.endpoint_url, region_name="us-east-1",
        aws_access_key_id=server.credentials.access_key_id,
        aws_secret_access_key=server.credentials.secret_access_key,
    )  # fmt: skip
    http = urllib3.PoolManager(maxsize=RAW_THREADS)

    def fetch(each: tuple[str, int, int]) -> int:
        url, start, end = each
        answer = http.request("GET", url, headers={"Range": f"bytes={start}-{end - 1}"})
        assert answer.status == 206
        return len(answer.data)

    with parts.index.read() as view:
        packs = [row.cloud for row in study_packs(view, study) if row.cloud]
    urls = [
        signer.generate_presigned_url(
            "get_object",
            {"Bucket": node.bucket, "Key": node.prefix + each.key, "VersionId": each.version_id},
        )
        for each in packs
    ]
    fetch((urls[0], 0, 1))
    started_s = time.perf_counter()
    fetch((urls[0], 0, 9 * SEALED_CHUNK_BYTES))
    found.raw_first_s.append(time.perf_counter() - started_s)
    ranges = [
        (url, start, min(start + RAW_PART_BYTES, cloud.size))
        for url, cloud in zip(urls, packs, strict=True)
        for start in range(0, cloud.size, RAW_PART_BYTES)
    ]
    started_s = time.perf_counter()
    with ThreadPoolExecutor(RAW_THREADS) as pool:
        assert sum(pool.map(fetch, ranges)) == sum(cloud.size for cloud in packs)
    found.raw_whole_s.append(time.perf_counter() - started_s)


def _recalled(port: int, study: str, found: Recall, count: int) -> None:
    received, first_s, whole_s = client.get(port, study)
    assert received == count
    found.first_s.append(first_s)
    found.whole_s.append(whole_s)

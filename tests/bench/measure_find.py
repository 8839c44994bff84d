"""C-FIND over an association, against a node whose index holds 10 thousand or a million studies."""

import random
import shutil

from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from tests.bench import client, index_bench
from tests.support.node import Node

QUERIES = 300
LEVEL, STUDY_UID, PATIENT_NAME, PATIENT_ID = 0x00080052, 0x0020000D, 0x00100010, 0x00100020


class Answered:
    """Percentiles of one kind of query, in milliseconds, and how many answers it had."""

    def __init__(self, took_s: list[float], answers: list[int]) -> None:
        ordered = sorted(took_s)
        self.p50_ms = 1000 * ordered[len(ordered) // 2]
        self.p99_ms = 1000 * ordered[int(len(ordered) * 0.99)]
        self.answers_mean = sum(answers) / len(answers)


def measure(node: Node, study_count: int, queries: int = QUERIES) -> dict[str, Answered]:
    """Fill the index of a node that does not run, start it, ask; return what by kind of query."""
    directory = node.data / "index"
    directory.mkdir(parents=True, exist_ok=True)
    with Index(FileSystem(), str(directory)) as index:
        _fill(index, study_count)
    node.start("receive")
    source = random.Random(7)
    association = client.connect(node.port)
    found = {}
    try:
        for kind, make_keys in index_bench.queries(study_count).items():
            took_s, answers = [], []
            for _ in range(queries):
                keys = {LEVEL: "STUDY", STUDY_UID: "", PATIENT_NAME: "", PATIENT_ID: ""}
                asked = {index_bench.TAGS[name]: it for name, it in make_keys(source).items()}
                count, seconds = client.find(association, keys | asked)
                took_s.append(seconds)
                answers.append(count)
            found[kind] = Answered(took_s, answers)
        association.release()
    finally:
        node.stop()
        shutil.rmtree(directory)
    return found


def _fill(index: Index, study_count: int) -> None:
    """Fill with studies that were evicted: the packs are not on this disk."""
    for start in range(0, study_count, index_bench.BATCH_STUDIES):
        stop = min(start + index_bench.BATCH_STUDIES, study_count)
        with index.write() as txn:
            for study in range(start, stop):
                facts = index_bench.facts_of(study, study_count, instances=1)
                facts.local = False
                txn.apply_pack(facts)

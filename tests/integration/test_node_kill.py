"""SIGKILL of any daemon in the middle of a transfer: what was answered Success is there, once.

KILL_SEED=n in the environment repeats the draw of a run; each run prints its own.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.archive.layout import Layout
from appliance.archive.studies import show_study
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from tests.support.archive_box import Sample, sample
from tests.support.bucket_look import packs_in_bucket, packs_in_ledger
from tests.support.node import Node, free_port, node  # noqa: F401
from tests.support.recording_sender import Sender, digests_of, fetch_all

SECOND = "receive-2"
STUDIES = 3
SIZES = (9_000, 9_000, 9_000, 120_000)
PAUSE_S = 0.02


@pytest.fixture
def draw() -> random.Random:
    """Chance that can be repeated."""
    seed = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().randrange(2**32)
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


def _samples(count: int, studies: int) -> list[Sample]:
    return [sample(number % studies, number, SIZES[number % len(SIZES)]) for number in range(count)]


def _children(pid: int) -> list[int]:
    """Return the processes that threads of a process have started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(each) for each in (task / "children").read_text().split()]
    return found


def _indexers(node: Node) -> list[int]:
    return [
        child
        for name, process in node.processes.items()
        if name != "uplink"
        for child in _children(process.pid)
        if b"appliance.daemons.indexer" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def _start_second(node: Node, port: int) -> None:
    """Start a second receiver on the same data directory, under a writer's name of its own."""
    with open(node.folder / f"{SECOND}.log", "ab") as log:
        node.processes[SECOND] = subprocess.Popen(
            [
                sys.executable, "-m", "appliance.cli.main", "receive", "--writer", SECOND,
                "--port", str(port),
            ],
            env=node.environment(), stdout=log, stderr=log,
        )  # fmt: skip


def _killers(node: Node, second_port: int = 0) -> list[Callable[[], None]]:
    """Return a way to kill each daemon and bring it back."""

    def daemon(name: str, restart: Callable[[], object]) -> Callable[[], None]:
        def kill() -> None:
            node.kill(name)
            restart()

        return kill

    def indexer() -> None:
        for pid in _indexers(node)[:1]:
            os.kill(pid, signal.SIGKILL)  # its receiver starts it again

    found = [
        daemon("receive", lambda: node.start("receive")),
        daemon("uplink", lambda: node.start("uplink")),
        indexer,
    ]
    if second_port:
        found.append(daemon(SECOND, lambda: _start_second(node, second_port)))
    return found


def _kill_at_random(
    draw: random.Random, sender: Sender, total: int, killers: list, times: int
) -> None:
    """Kill at random moments of a transfer; each daemon once before one is killed again."""
    order = draw.sample(killers, len(killers))
    order += draw.choices(killers, k=max(0, times - len(order)))
    for kill, at in zip(order[:times], sorted(draw.sample(range(total - 20), times)), strict=True):
        sender.wait_for(at)
        time.sleep(draw.uniform(0.0, PAUSE_S))  # anywhere between two answers
        kill()


def _check(node: Node, samples: Sequence[Sample]) -> None:
    """What was sent, all of it answered by now, is readable by hash, and nothing else is; every
    pack is verified, and named once."""
    assert node.drain()["pending_instances"] == 0
    assert fetch_all(node.port, samples) == digests_of(samples)
    named = packs_in_ledger(node)
    assert len(named) == len(set(named))
    assert sorted(named) == packs_in_bucket(node)
    layout = Layout(str(node.data))
    with Index(FileSystem(), layout.index) as index:
        shown = [
            each
            for study in dict.fromkeys(each.study for each in samples)
            for each in show_study(index, layout, study)["instances"]
        ]
    assert {each["sop_instance_uid"]: each["sha256"] for each in shown} == digests_of(samples)
    assert len(shown) == len(samples)
    assert not list(node.data.glob("spool/*"))


def _run(node: Node, draw: random.Random, count: int, times: int) -> None:
    samples = _samples(count, STUDIES)
    node.start()
    sender = Sender(node.port, samples, lambda: draw.uniform(0.0, PAUSE_S)).start()
    try:
        _kill_at_random(draw, sender, count, _killers(node), times)
        sender.finish(300)
    finally:
        sender.stop()
    print(f"{count} instances over {sender.associations_count} associations, {times} kills")
    assert sender.associations_count > 1
    _check(node, samples)


def _run_two(node: Node, draw: random.Random, count: int, times: int) -> None:
    """Two receivers get one study at once; a fifth of it comes to both."""
    samples = _samples(count, 1)
    port = free_port()
    node.start()
    _start_second(node, port)
    first = samples[: count * 3 // 5]
    second = samples[count * 2 // 5 :][::-1]
    chance = random.Random(draw.random())
    senders = [
        Sender(to, part, lambda: chance.uniform(0.0, PAUSE_S)).start()
        for to, part in ((node.port, first), (port, second))
    ]
    try:
        _kill_at_random(draw, senders[0], len(first), _killers(node, port), times)
        for sender in senders:
            sender.finish(300)
    finally:
        for sender in senders:
            sender.stop()
    print(f"{count} instances, associations {[each.associations_count for each in senders]}")
    _check(node, samples)


def test_killed_daemons_lose_and_double_nothing(node: Node, draw: random.Random) -> None:
    """Receiver, indexer and uplink, each killed once while 150 instances come."""
    _run(node, draw, 150, 3)


def test_two_receivers_of_one_study_double_nothing(node: Node, draw: random.Random) -> None:
    """One study over two processes at once, both killed in between."""
    _run_two(node, draw, 120, 4)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_kills_in_a_thousand_instances(node: Node, draw: random.Random) -> None:
    """The long form: ten random moments of a 1,000-instance transfer."""
    _run(node, draw, 1000, 10)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_kills_of_two_receivers(node: Node, draw: random.Random) -> None:
    """The long form with two receivers of one study."""
    _run_two(node, draw, 1000, 10)

"""A site is lost with its disk: a standby serves it from the bucket, and it comes back. Real
processes throughout; the time table is printed.

What is counted on is what the ledger in the bucket names when the site dies: what was answered
Success and not yet verified is lost with the only disk that had it.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom
import pytest

from appliance.archive.records import PackRecord
from appliance.dicom import status
from appliance.dimse.contexts import Proposal
from appliance.dimse.requestor import request_association
from appliance.foundation.errors import PeerError
from appliance.remote.embedded import EmbeddedS3
from tests.bench import client
from tests.support.archive_box import Sample, sample
from tests.support.bucket_look import ledger_of
from tests.support.node import Node
from tests.support.node_status import status_of, wait_until
from tests.support.pack_samples import CT_STORAGE, EXPLICIT
from tests.support.recording_sender import Sender, associate, digests_of, fetch, fetch_all, store

PATIENCE_S = 120.0
FIRST_IMAGE_S = 10.0
GET = "1.2.840.10008.5.1.4.1.2.2.3"
_ECHO_ONLY = """
[[dicom.peers]]
ae_title = "NEWCT"
addresses = ["127.0.0.0/8"]
allow = ["echo"]
"""
STUDY_LEVEL, STUDY_UID = 0x00080052, 0x0020000D


def until(wanted: Callable[[], object]) -> object:
    """Return what is wanted, once it is something; a peer that refuses meanwhile is no answer."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = wanted()
        except PeerError:
            found = None
        if found:
            return found
        assert time.monotonic() < end_s
        time.sleep(0.05)


def studies_found(node: Node) -> int:
    """Return how many studies a C-FIND of all finds."""
    association = client.connect(node.port)
    try:
        return client.find(association, {STUDY_LEVEL: "STUDY", STUDY_UID: ""})[0]
    finally:
        association.release()


def takes_stores(node: Node) -> bool:
    """Tell whether a storage context is accepted."""
    association = associate(node.port)
    try:
        return association.find_context(CT_STORAGE) is not None
    finally:
        association.release()


def takes(node: Node, calling_ae: str, *abstract_syntaxes: str) -> bool:
    """Tell whether all of these are accepted of a caller."""
    association = request_association(
        "127.0.0.1", node.port, calling_ae=calling_ae, called_ae="AZEKURA",
        proposals=[Proposal(each, (EXPLICIT,)) for each in abstract_syntaxes],
    )  # fmt: skip
    try:
        return all(association.find_context(each) is not None for each in abstract_syntaxes)
    finally:
        association.release()


def lose_disk(node: Node) -> None:
    """Delete a node's data, while its indexer perhaps still notices that its parent is dead."""

    def gone() -> bool:
        shutil.rmtree(node.data, ignore_errors=True)
        return not node.data.exists()

    until(gone)


class Disaster:
    """A site, and two standbys that know its public key, its recovery recipient and the bucket.

    The first takes studies while the site is silent, the second never. Neither has a title or a
    peer of its own. `times`: what had happened so many seconds after the first one's start.
    """

    def __init__(self, folder: Path, server: EmbeddedS3, bucket: str, silent_after: str) -> None:
        def node(name: str, **options: object) -> Node:
            prefix = f"{folder.name}-{os.getpid()}/"
            return Node(folder / name, server, bucket, prefix, name=name, **options)

        self.folder = folder
        self.site = node("site-a")
        self.first = node("standby-1", role="standby", bare=True, signers={"x": self.site.signer})
        self.second = node(
            "standby-2", role="standby", bare=True, writes=False, signers={"x": self.site.signer}
        )
        recipients = [each.recipient for each in (self.site, self.first, self.second)]
        signers = {each.name: each.signer for each in (self.site, self.first)}
        for each in (self.first, self.second):
            shutil.copyfile(self.site.recovery_key, each.recovery_key)
        for each in (self.site, self.first, self.second):
            each.configure(
                recipients=[one for one in recipients if one != each.recipient],
                signers={name: key for name, key in signers.items() if name != each.name},
            )
        accept = f'[standby]\naccept_stores = "when-silent"\nsilent_after = "{silent_after}"\n'
        self.first.configure(tables=accept)
        self.times: dict[str, float] = {}
        self._began_s = 0.0

    def stop(self) -> None:
        for each in (self.site, self.first, self.second):
            each.stop()

    def begin(self) -> None:
        self._began_s = time.monotonic()

    def mark(self, what: str) -> None:
        self.times[what] = time.monotonic() - self._began_s

    def table(self) -> str:
        return "\n".join(f"{seconds:8.2f} s  {what}" for what, seconds in self.times.items())

    def fill(self, samples: Sequence[Sample], in_flight: Sequence[Sample], sent: int) -> set[str]:
        """Store, drain, and lose the site in the middle of a transfer; return what is verified."""
        self.site.start()
        Sender(self.site.port, samples).start().finish(600)
        self.site.drain()
        sender = Sender(self.site.port, in_flight, lambda: 0.02).start()
        try:
            sender.wait_for(sent)
            for daemon in ("receive", "uplink"):
                self.site.kill(daemon)
        finally:
            sender.stop()
        lose_disk(self.site)
        return {
            instance.sop_instance_uid
            for entry in ledger_of(self.site)
            for record in entry.records
            if isinstance(record, PackRecord)
            for instance in record.instances
        }


def run(
    disaster: Disaster, samples: Sequence[Sample], in_flight: Sequence[Sample], sent: int
) -> None:
    """The whole way: lost, served, recovered, stored to, back."""
    verified_uids = disaster.fill(samples, in_flight, sent)
    verified = [each for each in [*samples, *in_flight] if each.sop_instance_uid in verified_uids]
    assert set(samples) <= set(verified)
    studies = len({each.study for each in verified})
    serve(disaster, verified, studies)
    new = [sample(5001, number, 20_000) for number in range(3)]
    stand_in(disaster, new)
    recover(disaster, [*verified, *new])
    come_back(disaster, [*verified, *new], studies + 1)
    change_and_retire(disaster)


def serve(disaster: Disaster, verified: Sequence[Sample], studies: int) -> None:
    """An empty standby answers for everything; a second one beside it does so too."""
    first, second = disaster.first, disaster.second
    wanted = verified[0].study
    disaster.begin()
    first.start()
    disaster.mark("it listens")
    until(lambda: studies_found(first))
    disaster.mark("the first study is found by C-FIND")
    arrived: list[float] = []

    def fetched() -> object:
        return fetch(first.port, wanted, lambda: arrived.append(time.monotonic())).digests

    until(fetched)
    disaster.times["the first image has come by C-GET"] = arrived[0] - disaster._began_s
    until(lambda: studies_found(first) == studies)
    disaster.mark(f"all {studies} studies are found")
    assert fetch_all(first.port, verified) == digests_of(verified)
    disaster.mark(f"all {len(verified)} instances have come, identical by hash")
    second.start()
    until(lambda: studies_found(second) == studies)
    assert fetch_all(second.port, verified) == digests_of(verified)
    disaster.mark("a second standby beside it has sent them all too")


def stand_in(disaster: Disaster, new: Sequence[Sample]) -> None:
    """The site is silent: one standby takes studies, and the other gets them from its ledger."""
    first, second = disaster.first, disaster.second
    found = wait_until(first, lambda found: found["nodes"][0]["state"] == "silent")
    assert (found["nodes"][0]["node"], found["nodes"][0]["role"]) == ("site-a", "appliance")
    assert not takes_stores(second)
    until(lambda: takes_stores(first))
    Sender(first.port, new).start().finish(120)
    first.drain()
    disaster.mark(f"{len(new)} new instances are stored to it and verified")
    studies = studies_found(first)
    until(lambda: studies_found(second) == studies)
    assert fetch_all(second.port, new) == digests_of(new)


def recover(disaster: Disaster, all_of_it: Sequence[Sample]) -> None:
    """The recovery identity alone brings everything back as files, the standby's studies too."""
    site, to = disaster.site, disaster.folder / "recovered"
    started_s = time.monotonic()
    site.azekura(
        "recover", "--identity", str(site.recovery_key), "--bucket", site.bucket, "--to", str(to),
        "--endpoint-url", site.endpoint_url, "--region", "us-east-1", "--prefix", site.prefix,
    )  # fmt: skip
    took_s = time.monotonic() - started_s
    disaster.times["(azekura recover, by itself: everything as files)"] = took_s
    files = sorted(to.rglob("*.dcm"))
    assert len(files) == len(all_of_it)
    expected = digests_of(all_of_it)
    for path in (files[0], files[-1]):
        dataset = pydicom.dcmread(path)
        (each,) = [one for one in all_of_it if one.sop_instance_uid == dataset.SOPInstanceUID]
        assert path.read_bytes().endswith(each.dataset)
        assert dataset.SOPInstanceUID in expected


def come_back(disaster: Disaster, all_of_it: Sequence[Sample], studies: int) -> None:
    """A new box with the site's keys and an empty disk has everything, by its own ledger and the
    standby's; nothing is merged by hand."""
    site = disaster.site
    disaster.mark("a new box of the site is begun")
    site.azekura("replace", "--yes")
    site.start()
    until(lambda: studies_found(site) == studies)
    disaster.mark("it finds every study")
    assert fetch_all(site.port, all_of_it) == digests_of(all_of_it)
    disaster.mark("it has sent every instance, identical by hash")
    more = [sample(5002, 1, 9_000)]
    Sender(site.port, more).start().finish(120)
    site.drain()
    until(lambda: studies_found(disaster.first) == studies + 1)
    assert fetch_all(disaster.first.port, more) == digests_of(more)
    disaster.mark("what is stored to it is at the standby")


def change_and_retire(disaster: Disaster) -> None:
    """Another peer at the site holds at the standby, without a restart of anybody; then the site
    retires, and takes nothing more until that is undone."""
    site, first = disaster.site, disaster.first
    assert takes(first, "NEWCT", "1.2.840.10008.1.1", GET)
    site.configure(peers=_ECHO_ONLY)
    until(lambda: not takes(first, "NEWCT", "1.2.840.10008.1.1", GET))
    assert "# adopted from site-a: dicom.peers NEWCT" in first.azekura("config", "show")
    disaster.mark("a peer that was changed at the site is changed at the standby")
    assert site.json("retire")["told"]
    until(lambda: not takes_stores(site))
    assert status_of(site)["refusal"] == "this node is retired"
    assert site.json("retire", "--undo")["retired_at"] is None
    until(lambda: takes_stores(site))


def studies_of(count: int, instances: int, size_bytes: int) -> list[Sample]:
    return [
        sample(study, number, size_bytes)
        for study in range(1, count + 1)
        for number in range(instances)
    ]


@pytest.fixture
def disaster_of(
    tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str
) -> Iterator[Callable[[str], Disaster]]:
    made: list[Disaster] = []

    def make(silent_after: str) -> Disaster:
        made.append(Disaster(tmp_path, s3_server, s3_bucket, silent_after))
        return made[0]

    yield make
    for each in made:
        print(each.table())
        each.stop()


@pytest.mark.timeout(600)
def test_a_lost_site_is_served_from_the_bucket_and_comes_back(
    disaster_of: Callable[[str], Disaster],
) -> None:
    """Five studies; the site dies in the middle of a sixth."""
    disaster = disaster_of("5 s")
    run(disaster, studies_of(5, 3, 30_000), [sample(900, n, 9_000) for n in range(60)], 10)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_lost_site_of_two_hundred_studies(disaster_of: Callable[[str], Disaster]) -> None:
    """200 studies; on a quiet machine the first image from an empty disk comes in ten seconds. When
    the site is heard again the standby takes no more, on an open association too."""
    is_quiet = os.getloadavg()[0] < 1.0  # a machine that others load says nothing about ten seconds
    disaster = disaster_of("75 s")
    run(disaster, studies_of(200, 8, 60_000), [sample(900, n, 60_000) for n in range(400)], 100)
    if is_quiet:
        assert disaster.times["the first image has come by C-GET"] < FIRST_IMAGE_S
    first = disaster.first
    until(lambda: not takes_stores(first))
    for daemon in ("receive", "uplink"):
        disaster.site.kill(daemon)
    until(lambda: takes_stores(first))
    association = associate(first.port)
    assert store(association, sample(6000, 1)) == status.SUCCESS
    disaster.site.start()
    number = iter(range(2, 10_000))
    until(lambda: store(association, sample(6000, next(number))) == status.OUT_OF_RESOURCES)
    association.release()

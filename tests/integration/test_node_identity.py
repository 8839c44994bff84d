"""Every dataset comes back as it came, byte for byte, whatever its transfer syntax.

All files that pydicom and its data package bring, judged on the bytes of the dataset on the wire.
Files that share an SOP Instance UID are versions: they are sent in rounds, one version of each
instance a round, and after each round the newest must be served.
"""

import collections
import contextlib
import hashlib
import io
import os
import random
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from appliance.archive.ingest import LARGE_INSTANCE_BYTES
from appliance.archive.layout import Layout
from appliance.archive.requests import Request, RequestBox
from appliance.archive.studies import show_study
from appliance.dicom.uid import (
    ACCEPTED_TRANSFER_SYNTAXES,
    GE_PRIVATE_IMPLICIT,
    is_big_endian,
    is_implicit,
    is_uncompressed,
)
from appliance.dimse.commands import encode_store_request
from appliance.dimse.contexts import Proposal
from appliance.dimse.requestor import request_association
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from tests.support.node import Node
from tests.support.running_node import running_node
from tests.support.wire import (
    NO_CONTEXT,
    Fetched,
    WireFile,
    get_raw,
    move_raw,
    send_raw,
    sendable_files,
    with_own_meta,
)

PAGE = Path(__file__).parents[2] / "docs" / "conformance" / "refusals.md"
BEGIN = "<!-- begin: pydicom's files, written by the test of identity with WRITE_PAGES=1 -->"
END = "<!-- end -->"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
ITEM = (0xFFFE, 0xE000)
MADE_STUDY = "2.25.42"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass
class Sent:
    """The node after everything was sent to it, and what came of it."""

    node: Node
    files: list[WireFile]
    statuses: dict[Path, int]
    fetched_by_get: list[tuple[dict[tuple[str, str], str], list[Fetched]]]
    fetched_by_move: list[tuple[dict[tuple[str, str], str], list[Fetched]]]

    @property
    def accepted(self) -> list[WireFile]:
        return [file for file in self.files if self.statuses[file.path] == 0x0000]


@pytest.fixture(scope="module")
def sent(tmp_path_factory, s3_server, s3_bucket) -> Iterator[Sent]:
    """Send everything, round by round, and fetch it after each round by C-GET and C-MOVE."""
    folder = tmp_path_factory.mktemp("identity")
    twins_folder = folder / "twins"
    twins_folder.mkdir()
    plain, twins = sendable_files(twins_folder)
    with running_node(folder / "node", s3_server, s3_bucket) as node:
        rounds = _rounds([*plain, *twins])
        sent = Sent(node, [file for files in rounds for file in files], {}, [], [])
        newest: dict[tuple[str, str], WireFile] = {}
        for number, files in enumerate(rounds):
            statuses = send_raw(node, files)
            sent.statuses |= dict(zip((file.path for file in files), statuses, strict=True))
            stored = [
                file for file, status in zip(files, statuses, strict=True) if status == 0x0000
            ]
            newest |= {file.place: file for file in stored}
            studies = {file.study for file in stored}
            served = [file for place, file in newest.items() if place[0] in studies]
            expected = {file.place: file.sha256 for file in served}
            sent.fetched_by_get.append((expected, get_raw(node, served)))
            sent.fetched_by_move.append(_moved(node, served, folder / f"{number}"))
        yield sent


def _moved(
    node: Node, served: list[WireFile], directory: Path
) -> tuple[dict[tuple[str, str], str], list[Fetched]]:
    """Move whole studies but those of a dataset of odd length, at which DCMTK aborts."""
    odd = {file.study for file in served if file.length % 2}
    wanted = [file for file in served if file.study not in odd]
    fetched = move_raw(node, wanted, directory) if wanted else []
    return {file.place: file.sha256 for file in wanted}, fetched


def _rounds(files: list[WireFile]) -> list[list[WireFile]]:
    """Split files so that a round has one version of an instance; bytes that repeat go once."""
    rounds: list[list[WireFile]] = []
    seen: set[tuple[tuple[str, str], str, str]] = set()
    count: collections.Counter[str] = collections.Counter()
    for file in files:
        content = (file.place, file.syntax, file.sha256)
        if content in seen:
            continue
        seen.add(content)
        number = count[file.sop_instance]
        count[file.sop_instance] += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(file)
    return rounds


# --- identity


def _differing(
    sent: Sent, expected: dict[tuple[str, str], str], fetched: list[Fetched]
) -> list[str]:
    found = {(each.study, each.sop_instance): each.sha256 for each in fetched}
    assert len(found) == len(fetched), "an instance came twice"
    assert found.keys() <= expected.keys(), "something came that was not asked for"
    names = {(file.place, file.sha256): file.name for file in sent.files}
    return [
        names[place, sha256] for place, sha256 in expected.items() if found.get(place) != sha256
    ]


def test_identity_enough_was_sent(sent: Sent) -> None:
    """Guards the tests below against a folder that is empty one day."""
    assert len(sent.accepted) >= 220
    assert len({file.syntax for file in sent.accepted}) >= 10
    assert len(sent.fetched_by_get) >= 19


def test_identity_by_get(sent: Sent) -> None:
    """pynetdicom, offering exactly the stored syntax: the newest version, byte for byte."""
    for expected, fetched in sent.fetched_by_get:
        assert _differing(sent, expected, fetched) == []


def test_identity_by_move(sent: Sent) -> None:
    """DCMTK's movescu as its own destination: the newest version, byte for byte."""
    for expected, fetched in sent.fetched_by_move:
        assert _differing(sent, expected, fetched) == []
    moved = {sha256 for expected, _ in sent.fetched_by_move for sha256 in expected.values()}
    left_out = [file for file in sent.accepted if file.sha256 not in moved]
    assert len(left_out) <= 6, left_out


def test_identity_of_older_versions(sent: Sent) -> None:
    """Every version that was answered Success is shown, and lies in a pack with its bytes."""
    sent.node.drain()  # packs move while they are sealed
    index = Index(FileSystem(), str(sent.node.data / "index")).open()
    try:
        layout = Layout(str(sent.node.data))
        shown = {
            (study, row["sop_instance_uid"], row["transfer_syntax_uid"], row["sha256"])
            for study in {file.study for file in sent.accepted}
            for row in show_study(index, layout, study)["instances"]
        }
    finally:
        index.close()
    answered = {(*file.place, file.syntax, file.sha256) for file in sent.accepted}
    assert shown == answered
    in_packs = set()
    for path in sent.node.data.glob("packs/**/*.tar"):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".dcm"):
                    in_packs.add(_digest_behind_meta(tar.extractfile(member).read()))
    assert {file.sha256 for file in sent.accepted} <= in_packs


def _digest_behind_meta(part10: bytes) -> str:
    length = int.from_bytes(part10[140:144], "little")
    return hashlib.sha256(part10[144 + length :]).hexdigest()


def test_identity_as_study_show_says(sent: Sent) -> None:
    """The command line shows the versions of an instance in order, the last one served."""
    count = collections.Counter(file.place for file in sent.accepted)
    place, versions = count.most_common(1)[0]
    rows = [
        row
        for row in sent.node.json("study", "show", place[0])["instances"]
        if row["sop_instance_uid"] == place[1]
    ]
    assert [row["sha256"] for row in rows] == [
        file.sha256 for file in sent.accepted if file.place == place
    ]
    assert [row["served"] for row in rows] == [False] * (versions - 1) + [True]


def test_identity_from_the_bucket(sent: Sent) -> None:
    """Evicted, and fetched again: what comes out of the bucket is what came in."""
    node = sent.node
    assert node.drain()["pending_instances"] == 0
    newest = {file.place: file for file in sent.accepted}
    box = RequestBox(FileSystem(), str(node.data / "state" / "requests"))
    asked = [
        box.put(Request(kind="evict", study_instance_uid=study))
        for study in {file.study for file in newest.values()}
    ]
    answers = [box.wait(request_id, 60) for request_id in asked]
    assert all(answer.done for answer in answers)
    assert not list(node.data.glob("packs/*/*.tar"))
    fetched = get_raw(node, list(newest.values()))
    expected = {place: file.sha256 for place, file in newest.items()}
    assert _differing(sent, expected, fetched) == []


def test_identity_of_every_accepted_syntax(sent: Sent, tmp_path: Path) -> None:
    """Nobody looks at pixels: encapsulated ones of any syntax, and odd lengths, come back whole.

    One is too large to be held in memory on its way.
    """
    syntaxes = [syntax for syntax in ACCEPTED_TRANSFER_SYNTAXES if syntax != GE_PRIVATE_IMPLICIT]
    files = []
    for number, syntax in enumerate(syntaxes):
        size = LARGE_INSTANCE_BYTES + 3_000_001 if syntax == RLE else 999
        files.append(_made(tmp_path / f"{number}.dcm", syntax, size))
    statuses = dict(zip(syntaxes, send_raw(sent.node, files), strict=True))
    assert {syntax: status for syntax, status in statuses.items() if status} == {}
    expected = {file.place: file.sha256 for file in files}
    found = {(each.study, each.sop_instance): each for each in get_raw(sent.node, files)}
    assert {place: each.sha256 for place, each in found.items()} == expected
    assert {each.syntax for each in found.values()} == set(syntaxes)


def test_identity_of_the_private_syntax(sent: Sent, tmp_path: Path) -> None:
    """GE's, which pynetdicom does not know: sent and read by the project's own association."""
    file = _made(tmp_path / "ge.dcm", GE_PRIVATE_IMPLICIT, 1001)
    raw = file.path.read_bytes()[file.offset :]
    association = request_association(
        "127.0.0.1", sent.node.port, calling_ae="GE", called_ae="AZEKURA",
        proposals=[Proposal(file.sop_class, (GE_PRIVATE_IMPLICIT,))],
    )  # fmt: skip
    command = encode_store_request(1, file.sop_class, file.sop_instance)
    with contextlib.closing(association):
        assert association.exchange(1, command, 1, memoryview(raw), 30.0).status == 0x0000
        association.release()
    shown = sent.node.json("study", "show", file.study)["instances"]
    (row,) = [row for row in shown if row["sop_instance_uid"] == file.sop_instance]
    assert (row["transfer_syntax_uid"], row["sha256"]) == (GE_PRIVATE_IMPLICIT, file.sha256)


def _made(path: Path, syntax: str, size: int) -> WireFile:
    """Write a dataset with `size` random bytes of pixel data, encapsulated where that is right."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)
    del dataset.file_meta
    dataset.preamble = None
    dataset.StudyInstanceUID = MADE_STUDY
    dataset.SeriesInstanceUID = f"{MADE_STUDY}.1"
    dataset.SOPInstanceUID = generate_uid()
    buffer = io.BytesIO()
    implicit, big = is_implicit(syntax), is_big_endian(syntax)
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=implicit, little_endian=not big, enforce_file_format=False
    )
    order = ">" if big else "<"
    pixels = random.Random(syntax).randbytes(size)
    if is_uncompressed(syntax):
        form = "HHI" if implicit else "HH2sHI"
        vr = () if implicit else (b"OW", 0)
        raw = struct.pack(order + form, 0x7FE0, 0x0010, *vr, size) + pixels
    else:
        raw = struct.pack(
            "<HH2sHIHHIHHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF, *ITEM, 0, *ITEM, size
        )
        raw += pixels + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return with_own_meta(path, buffer.getvalue() + raw, dataset, syntax)


# --- refusals


def _reason(file: WireFile) -> str:
    """Why a file can't be taken as it is, from the file alone."""
    if file.sop_class == MEDIA_DIRECTORY:
        return "a media directory is no instance"
    if file.syntax == DEFLATED:
        return "Deflated transfer syntaxes are not offered"
    found = pydicom.dcmread(file.path, stop_before_pixels=True)
    if not found.get("SOPInstanceUID"):
        return "no SOP Instance UID in the dataset"
    if found.SOPInstanceUID != file.sop_instance:
        return "the file's meta group, and so the command, names another instance"
    if not file.study or not file.series:
        return "no Study or Series Instance UID in the dataset"
    return ""


def test_identity_refusals_are_clean_and_listed(sent: Sent) -> None:
    """A context that is not accepted, or 0xA900; each for a reason, and in docs."""
    rows = set()
    for file in sent.files:
        status = sent.statuses[file.path]
        if status == 0x0000:
            assert not _reason(file), file.name
            continue
        assert status in (NO_CONTEXT, 0xA900), (file.name, hex(status))
        assert _reason(file), (file.name, hex(status))
        answer = "context not accepted" if status == NO_CONTEXT else f"0x{status:04X}"
        rows.add(f"| {file.name} | {answer} | {_reason(file)} |")
    table = "\n".join(["| file | answer | why |", "|---|---|---|", *sorted(rows)])
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    written, _, tail = rest.partition(END)
    if os.environ.get("WRITE_PAGES"):
        PAGE.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}")
    else:
        assert written.strip() == table


def test_identity_of_what_only_its_file_names_wrongly(sent: Sent) -> None:
    """What was refused for its meta group alone is kept when it is sent under its own name."""
    twins = [file for file in sent.files if file.path.parent.name == "twins"]
    assert len(twins) >= 12
    assert [file.name for file in twins if sent.statuses[file.path] != 0x0000] == []

"""One instance of 2 GB: received, uploaded in parts, evicted, recalled; never held in memory."""

import hashlib
import mmap
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.dimse.association import Association
from appliance.dimse.commands import C_STORE_RQ, encode_store_request, encode_store_success
from appliance.dimse.contexts import Proposal
from appliance.dimse.requestor import request_association
from tests.bench import client
from tests.support.node import Node, node  # noqa: F401

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7.3"
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY, SERIES, INSTANCE = "2.25.901", "2.25.902", "2.25.903"
ROWS = COLUMNS = 1000
FRAMES = 1000
PIXEL_BYTES = ROWS * COLUMNS * FRAMES * 2
BLOCK_BYTES = 1_000_000
MEMORY_MAX_BYTES = 250_000_000


def _element(group: int, element: int, vr: str, value: bytes) -> bytes:
    head = group.to_bytes(2, "little") + element.to_bytes(2, "little") + vr.encode()
    if vr == "OW":
        return head + b"\0\0" + PIXEL_BYTES.to_bytes(4, "little")
    padded = value + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return head + len(padded).to_bytes(2, "little") + padded


def _pieces() -> Iterator[bytes]:
    """Yield a dataset of 2 GB whose every block differs."""
    us = {(0x0028, 0x0010): ROWS, (0x0028, 0x0011): COLUMNS, (0x0028, 0x0100): 16}
    texts = [
        (0x0008, 0x0016, "UI", MULTI_FRAME), (0x0008, 0x0018, "UI", INSTANCE),
        (0x0008, 0x0060, "CS", "OT"), (0x0010, 0x0010, "PN", "Large^One"),
        (0x0010, 0x0020, "LO", "LARGE"), (0x0020, 0x000D, "UI", STUDY),
        (0x0020, 0x000E, "UI", SERIES), (0x0028, 0x0008, "IS", str(FRAMES)),
    ]  # fmt: skip
    yield b"".join(_element(g, e, vr, value.encode()) for g, e, vr, value in texts)
    yield b"".join(
        _element(g, e, "US", value.to_bytes(2, "little")) for (g, e), value in us.items()
    )
    yield _element(0x7FE0, 0x0010, "OW", b"")
    noise = random.Random(3).randbytes(BLOCK_BYTES)
    for number in range(PIXEL_BYTES // BLOCK_BYTES):
        yield number.to_bytes(8, "big") + noise[8:]


def _send(node: Node, path: Path) -> None:
    association = request_association(
        "127.0.0.1", node.port, calling_ae="BIG", called_ae="AZEKURA",
        proposals=[Proposal(MULTI_FRAME, (EXPLICIT,))],
    )  # fmt: skip
    context = association.find_context(MULTI_FRAME)
    assert context is not None
    message_id = association.next_message_id()
    command = encode_store_request(message_id, MULTI_FRAME, INSTANCE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        answer = association.exchange(
            context.context_id, command, message_id, memoryview(mapped), timeout_s=120
        )
    assert answer.status == 0
    association.release()


def _fetch(node: Node) -> bytes:
    """Return the sha256 of the dataset that a C-GET brings."""
    association: Association = request_association(
        "127.0.0.1", node.port, calling_ae="BIG", called_ae="AZEKURA",
        proposals=[
            Proposal(client.uid.STUDY_ROOT_GET, (EXPLICIT,)),
            Proposal(MULTI_FRAME, (EXPLICIT,), scu=False, scp=True),
        ],
    )  # fmt: skip
    client.send_get(association, STUDY)
    digest = hashlib.sha256()
    while True:
        command = association.read_command(120)
        assert command is not None
        if command.field == C_STORE_RQ:
            for part in association.read_dataset_parts(1 << 20):
                digest.update(part)
            association.send_response(command.context_id, encode_store_success(command))
        elif command.status not in client.PENDING:
            assert command.status == 0
            break
    association.release()
    return digest.digest()


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


def test_two_gigabytes_pass_through_bounded_memory(node: Node, tmp_path: Path) -> None:
    """Identical after upload in parts, eviction and recall; both daemons stay below 250 MB."""
    path = tmp_path / "large.dataset"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces():
            file.write(piece)
            digest.update(piece)
    node.configure(capacity="20 GiB")
    node.start()
    _send(node, path)
    assert node.drain()["pending_instances"] == 0
    shown = node.json("study", "show", STUDY)["instances"]
    assert [each["sha256"] for each in shown] == [digest.hexdigest()]
    assert _fetch(node) == digest.digest()
    node.azekura("study", "evict", STUDY)
    assert not list(node.data.glob("packs/*/*.tar"))
    assert _fetch(node) == digest.digest()
    peaks = {name: _peak_bytes(process.pid) for name, process in node.processes.items()}
    print(f"peak memory in MB: { {name: round(peak / 1e6) for name, peak in peaks.items()} }")
    assert max(peaks.values()) < MEMORY_MAX_BYTES, peaks

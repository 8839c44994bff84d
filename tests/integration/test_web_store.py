"""STOW-RS of a whole node: what it stores is what C-STORE stores, and what it says of each."""

import os
import socket
import ssl
import time
from pathlib import Path

import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import generate_uid

from appliance.dicom.file_meta import build_file_meta
from tests.support.dimse import CT, EXPLICIT, small_ct, write_part10
from tests.support.shared_node import SharedNode
from tests.support.web_client import WebClient, multipart
from tests.support.wire import get_raw, read_wire_file, send_raw, sendable_files, with_own_meta

STORED, FAILED, REASON, INSTANCE = "00081199", "00081198", "00081197", "00081155"
LARGE_BYTES = 20 * 2**20


@pytest.fixture(scope="module")
def client(shared: SharedNode) -> WebClient:
    return WebClient(shared.node, "read,store")


def made(folder: Path, **changes) -> Path:
    """Write a CT of a study that nobody has seen."""
    own = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    dataset, _ = small_ct(**(own | changes))
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    write_part10(dataset, str(path))
    return path


def reasons(document: dict) -> list[int]:
    return [item[REASON]["Value"][0] for item in document.get(FAILED, {}).get("Value", [])]


def uids(document: dict, key: str) -> list[str]:
    return [item[INSTANCE]["Value"][0] for item in document.get(key, {}).get("Value", [])]


def test_real_files_are_stored_as_by_c_store(
    shared: SharedNode, client: WebClient, tmp_path: Path
) -> None:
    """Each dataset byte for byte; the same files by C-STORE afterwards are known already."""
    plain, _ = sendable_files(tmp_path)
    files = list({file.sop_instance: file for file in reversed(plain)}.values())
    answer = client.store(multipart([file.path.read_bytes() for file in files]))
    assert answer.status_code in (200, 202)
    stored = set(uids(answer.json(), STORED))
    assert len(stored) > 100
    assert stored | set(uids(answer.json(), FAILED)) == {file.sop_instance for file in files}
    statuses = send_raw(shared.node, files)
    for file, status in zip(files, statuses, strict=True):
        assert (status == 0) == (file.sop_instance in stored), file.name
    taken = [file for file in files if file.sop_instance in stored]
    fetched = {each.sop_instance: each.sha256 for each in get_raw(shared.node, taken)}
    assert fetched == {file.sop_instance: file.sha256 for file in taken}
    (row,) = [
        row for row in shared.node.json("study", "show", taken[0].study)["instances"]
        if row["sop_instance_uid"] == taken[0].sop_instance
    ]  # fmt: skip
    assert row["from"]["calling_ae"] == client.name
    assert row["from"]["called_ae"] == "AZEKURA"
    assert row["sha256"] == taken[0].sha256


def test_each_instance_is_answered_for(client: WebClient, tmp_path: Path) -> None:
    """Good ones are stored beside a broken one, one of another study, one of no storage class."""
    study = generate_uid()
    good = made(tmp_path, StudyInstanceUID=study)
    other = made(tmp_path)
    deflated = tmp_path / "deflated"
    uid = generate_uid()
    deflated.write_bytes(build_file_meta(CT, uid, "1.2.840.10008.1.2.1.99", "") + b"whatever")
    dataset, raw = small_ct(StudyInstanceUID=study, SOPClassUID="1.2.3.4")
    strange = with_own_meta(tmp_path / "strange", raw, dataset, EXPLICIT).path
    bodies = [path.read_bytes() for path in (good, other, deflated, strange)]
    answer = client.store(multipart([*bodies, b"not DICOM at all", b""]), study)
    assert answer.status_code == 202
    document = answer.json()
    assert uids(document, STORED) == [good.stem]
    assert reasons(document) == [0xA900, 0xC122, 0x0122, 0xC000, 0xC000]
    assert document["00081190"]["Value"] == [f"{client.base}/dicom-web/studies/{study}"]
    (item,) = document[STORED]["Value"]
    url = item["00081190"]["Value"][0].removeprefix(client.base)
    assert client.get(url, "application/dicom; transfer-syntax=*").status_code == 200
    answer = client.store(multipart([b"nothing"]))
    assert answer.status_code == 409
    assert reasons(answer.json()) == [0xC000]


def test_a_large_instance_is_streamed(
    shared: SharedNode, client: WebClient, tmp_path: Path
) -> None:
    """20 MB in a pack of its own, byte for byte."""
    pixels = os.urandom(LARGE_BYTES)
    path = made(tmp_path, PixelData=pixels)
    answer = client.store(multipart([path.read_bytes()]))
    assert answer.status_code == 200, answer.text
    file = read_wire_file(path)
    (found,) = get_raw(shared.node, [file])
    assert found.sha256 == file.sha256


def test_dicomweb_client_stores(client: WebClient, tmp_path: Path) -> None:
    """As its users call it, into a study and without one."""
    path = made(tmp_path)
    dataset = pydicom.dcmread(path)
    client.session.headers.pop("Accept", None)
    user = DICOMwebClient(f"{client.base}/dicom-web", session=client.session)
    for study in (None, dataset.StudyInstanceUID):
        found = user.store_instances([dataset], study)
        assert found.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == path.stem


def test_what_is_no_body_of_instances_is_refused(client: WebClient, tmp_path: Path) -> None:
    """Wrong types, compressed bodies, broken multiparts, bombs of headers and of parts."""
    good = made(tmp_path).read_bytes()
    body = multipart([good])
    assert client.store(body, Content_Type="application/dicom").status_code == 415
    kind = 'multipart/related; type="application/json"; boundary=b0undary'
    assert client.store(body, Content_Type=kind).status_code == 415
    assert client.store(body, Content_Encoding="gzip").status_code == 415
    assert client.store(body, Accept="text/html").status_code == 406
    assert client.store(body[:-20]).status_code == 400
    assert client.store(b"").status_code == 400
    assert client.store(body, boundary="x" * 71).status_code == 400
    assert client.store(b"--b0undary\r\n" + b"A: b\r\n" * 1000 + b"\r\n\r\n").status_code == 400
    assert client.store(b"--b0undary\r\n" + b"A" * 100_000).status_code == 413
    assert client.store(b"--b0undary\r\n\r\n\r\n" * 60_000 + b"--b0undary--").status_code == 413
    inflated = b"--b0undary\r\nContent-Encoding: gzip\r\n\r\n" + good + b"\r\n--b0undary--"
    assert client.store(inflated).status_code == 409
    nested = multipart([multipart([good], "inner")])
    assert client.store(nested).status_code == 409
    assert client.store(body).status_code == 200
    study = f"{client.base}/dicom-web/studies/1.2'3"
    assert client.session.post(study, data=body, timeout=60).status_code in (400, 415)


def test_only_who_may_store_does(shared: SharedNode, tmp_path: Path) -> None:
    """A token for reading: 403, and nothing is stored."""
    path = made(tmp_path)
    reader = WebClient(shared.node, "read")
    assert reader.store(multipart([path.read_bytes()])).status_code == 403
    study = pydicom.dcmread(path).StudyInstanceUID
    assert reader.get(f"studies?StudyInstanceUID={study}").status_code == 204


def test_a_client_that_goes_away_leaves_nothing_half(
    shared: SharedNode, client: WebClient, tmp_path: Path
) -> None:
    """The connection ends inside the second of two instances: the first is there, and whole."""
    study = generate_uid()
    first, second = (made(tmp_path, StudyInstanceUID=study) for _ in range(2))
    body = multipart([first.read_bytes(), second.read_bytes()])
    context = ssl.create_default_context(cafile=str(client.authority))
    with socket.create_connection(("127.0.0.1", shared.node.web_port), 60) as sock:
        tls = context.wrap_socket(sock, server_hostname="127.0.0.1")
        tls.sendall(
            b"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b'Content-Type: multipart/related; type="application/dicom"; boundary=b0undary\r\n'
            + f"Authorization: Bearer {client.token}\r\n".encode()
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body[: len(body) - 5000]
        )
        # The first is there while the second is still on its way.
        end_s = time.monotonic() + 60
        while client.get(f"studies?StudyInstanceUID={study}").status_code != 200:
            assert time.monotonic() < end_s
        tls.close()
    ended = '"action": "store instances", "status": 0'
    while ended not in shared.node.log("web"):
        assert time.monotonic() < end_s + 60
    rows = shared.node.json("study", "show", study)["instances"]
    assert [row["sop_instance_uid"] for row in rows] == [first.stem]
    assert rows[0]["sha256"] == read_wire_file(first).sha256

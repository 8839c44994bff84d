"""Nothing of a patient leaves the box in clear, and everything comes back with the key alone."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from appliance.archive.recover import dataset_sha256
from appliance.archive.requests import Request, RequestBox
from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from tests.support.archive_box import Sample
from tests.support.bucket_look import bucket_of
from tests.support.node import Node
from tests.support.pack_samples import CT_STORAGE, element
from tests.support.recording_sender import Sender, digests_of, fetch
from tests.support.s3_fixture import s3_bucket, s3_server  # noqa: F401

ROOT = "1.2.392.200036.9999.271828"
KANJI = "山桜^花子"
KANA = "ヤマザクラ^ハナコ"
TEXTS = {
    0x00080050: ("SH", "ACCZYQ7"),
    0x00080080: ("LO", "WHITHERWOOD HOSPITAL"),
    0x00081030: ("LO", "QUIXOTIC STUDY"),
    0x00100020: ("LO", "PIDZYQ31415"),
    0x00100030: ("DA", "19071103"),
    0x00104000: ("LT", "MARMALADE ALLERGY"),
}
NAMES = ("ZYQUARTLE^PHILOMENA", "YAMAZAKURA^HANAKO")


def _sample(study: int, number: int) -> Sample:
    """Return an instance full of words that occur nowhere else."""
    latin = study == 1
    study_uid = f"{ROOT}.{study}"
    uid = f"{study_uid}.1.{number}"
    name = (NAMES[0] if latin else f"{NAMES[1]}={KANJI}={KANA}").encode()
    elements = {
        0x00080005: ("CS", b"" if latin else b"ISO_IR 192"),
        0x00080016: ("UI", CT_STORAGE.encode()),
        0x00080018: ("UI", uid.encode()),
        0x00080060: ("CS", b"CT"),
        0x00100010: ("PN", name),
        0x0020000D: ("UI", study_uid.encode()),
        0x0020000E: ("UI", f"{study_uid}.1".encode()),
        0x7FE00010: ("OW", bytes([number]) * 3000),
    } | {tag: (vr, text.encode()) for tag, (vr, text) in TEXTS.items()}
    dataset = b"".join(element(tag, vr, value) for tag, (vr, value) in sorted(elements.items()))
    return Sample(study_uid, uid, dataset)


SAMPLES = [_sample(study, number) for study in (1, 2) for number in range(1, 4)]
CANARIES = [
    text.encode(encoding)
    for text in (
        *(part for name in NAMES for part in name.split("^")),
        *(text for vr, text in TEXTS.values() if vr != "DA"),
        *KANJI.split("^"), *KANA.split("^"), ROOT,
    )
    for encoding in ("utf-8", "utf-16-le", "shift_jis", "iso2022_jp", "euc_jp")
]  # fmt: skip


def _found_in(raw: bytes) -> list[bytes]:
    folded = raw.lower()
    return [canary for canary in CANARIES if canary in raw or canary.lower() in folded]


def test_the_canaries_sing() -> None:
    """Guard: what is looked for below is in what is sent."""
    sent = b"".join(each.dataset for each in SAMPLES)
    assert set(_found_in(sent)) >= {name.split("^")[0].encode() for name in NAMES}
    assert KANJI.split("^", maxsplit=1)[0].encode() in _found_in(sent)
    assert ROOT.encode() in _found_in(sent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("privacy")


@pytest.fixture(scope="module")
def drained(folder: Path) -> Iterator[Node]:
    """A node with a bucket of its own, which has been through everything that writes a log."""
    with EmbeddedS3(str(folder / "s3"), FileSystem()) as server:
        server.create_bucket("archive")
        node = Node(folder / "node", server, "archive", "site/")
        node.start()
        try:
            Sender(node.port, SAMPLES).start().finish(60)
            _live(node)
            node.drain()
            yield node
        finally:
            node.stop()


def _live(node: Node) -> None:
    """Query, retrieve, refuse, evict, recall, reject: each may log what it should not."""
    node.dcmtk(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID", "-k",
        f"PatientName={NAMES[0].split('^')[0].lower()}*",
    )  # fmt: skip
    node.drain()
    for study in (1, 2):
        assert fetch(node.port, f"{ROOT}.{study}").status == 0
        _ask(node, "evict", study_instance_uid=f"{ROOT}.{study}")
    assert fetch(node.port, f"{ROOT}.2").digests == digests_of(SAMPLES[3:])
    for kind in ("reject", "restore"):
        _ask(
            node, kind, study_instance_uid=f"{ROOT}.1", by="RADIOGRAPHER",
            sop_instance_uids=(SAMPLES[0].sop_instance_uid,),
        )  # fmt: skip
    broken = _sample(1, 9)
    wrong = Sample(broken.study, broken.sop_instance_uid, broken.dataset[:400])
    sender = Sender(node.port, [wrong]).start()
    sender.stop()


def _ask(node: Node, kind: str, **what: Any) -> None:
    """Leave a request as the commands do, and wait until it was carried out."""
    box = RequestBox(FileSystem(), str(node.data / "state" / "requests"))
    assert box.wait(box.put(Request(kind=kind, **what)), 60).done


def _versions(node: Node) -> Iterable[tuple[str, bytes]]:
    bucket = bucket_of(node)
    for each in bucket.versions(""):
        yield each.key, bucket.get(each.key, each.version_id)


def test_no_object_and_no_key_tells_anything(drained: Node) -> None:
    """Every version of every object, as it lies in the bucket."""
    count = 0
    for key, raw in _versions(drained):
        assert _found_in(key.encode()) == []
        assert _found_in(raw) == []
        count += 1
    assert count >= 5


def test_the_stores_own_files_tell_nothing(drained: Node, folder: Path) -> None:
    """Also where the store keeps names, logs and what it deleted."""
    files = [path for path in (folder / "s3").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > len(SAMPLES) * 3000
    for path in files:
        assert _found_in(str(path).encode()) == []
        assert _found_in(path.read_bytes()) == [], path


def test_no_log_line_tells_anything(drained: Node) -> None:
    logs = sorted(drained.folder.glob("*.log"))
    assert [path.name for path in logs] == ["receive.log", "uplink.log"]
    for path in logs:
        raw = path.read_bytes()
        assert raw
        assert _found_in(raw) == [], path


def test_age_and_tar_give_everything_back(drained: Node, tmp_path: Path) -> None:
    """`age -d -i recovery.key PACK | tar x`, silently, for every pack; hashes as `study show`."""
    for key, raw in _versions(drained):
        if not key.startswith("packs/"):
            continue
        sealed = tmp_path / "pack.tar.age"
        sealed.write_bytes(raw)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", 'age -d -i "$1" "$2" | tar -x -C "$3"', "-",
             str(drained.recovery_key), str(sealed), str(tmp_path)],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert _digests(tmp_path) == _shown(drained) == digests_of(SAMPLES)


def test_recover_gives_the_same(drained: Node, tmp_path: Path) -> None:
    """Bucket and key alone: the dead site's configuration is not looked at."""
    assert drained.server.credentials is not None
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [
            *drained._command("recover", "--json", "--identity", str(drained.recovery_key)),
            "--to", str(tmp_path / "out"), "--bucket", drained.bucket, "--endpoint-url",
            drained.server.endpoint_url, "--region", "us-east-1", "--prefix", drained.prefix,
        ],
        env={
            **os.environ,
            "AWS_ACCESS_KEY_ID": drained.server.credentials.access_key_id,
            "AWS_SECRET_ACCESS_KEY": drained.server.credentials.secret_access_key,
        },
        capture_output=True, text=True, timeout=120, check=False, cwd=_root(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["findings"] == []
    assert _digests(tmp_path / "out") == digests_of(SAMPLES)


def _root() -> Path:
    return Path(__file__).parents[2]


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of each recovered dataset by the SOP Instance UID in its name."""
    return {path.stem: dataset_sha256(str(path)).hex() for path in folder.rglob("*.dcm")}


def _shown(node: Node) -> dict[str, str]:
    return {
        each["sop_instance_uid"]: each["sha256"]
        for study in (1, 2)
        for each in node.json("study", "show", f"{ROOT}.{study}")["instances"]
    }


def test_the_samples_are_datasets() -> None:
    """Guard: pydicom reads the names that were planted."""
    found: Dataset = read_dataset(BytesIO(SAMPLES[3].dataset), False, True)
    assert str(found.PatientName).split("=")[1] == KANJI

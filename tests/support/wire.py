"""Datasets as they are on the wire, byte for byte: sent raw, fetched raw, compared by digest.

pynetdicom's chunked modes send a file's dataset untouched and write what comes untouched. Every
file gets a presentation context of its own SOP class and transfer syntax and no other, so that
nobody has a choice.
"""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pynetdicom import AE, _config, build_context, build_role, evt
from pynetdicom.dsutils import split_dataset

from tests.support.node import Node, run_tool
from tests.support.real_files import files_of_pydicom

STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
CONTEXTS_MAX = 128
ANSWER_S = 15.0
NO_CONTEXT = -1
"""In place of a status: the node accepted no context for the file."""


@dataclass(frozen=True)
class WireFile:
    """A Part 10 file and what of it is on the wire."""

    path: Path
    name: str
    study: str
    series: str
    sop_class: str
    sop_instance: str
    syntax: str
    offset: int
    length: int
    sha256: str

    @property
    def context(self) -> tuple[str, str]:
        return self.sop_class, self.syntax

    @property
    def place(self) -> tuple[str, str]:
        """What makes two files versions of one instance."""
        return self.study, self.sop_instance


@dataclass(frozen=True)
class Fetched:
    """What came back, whoever fetched it."""

    study: str
    sop_instance: str
    syntax: str
    sha256: str


def read_wire_file(path: Path) -> WireFile:
    """Read a Part 10 file; raises what pydicom raises for one that is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta, offset = split_dataset(path)
        found = pydicom.dcmread(path, stop_before_pixels=True)
        dataset = path.read_bytes()[offset:]
        return WireFile(
            path=path,
            name=path.name,
            study=str(found.get("StudyInstanceUID", "")),
            series=str(found.get("SeriesInstanceUID", "")),
            sop_class=str(meta.get("MediaStorageSOPClassUID", "")),
            sop_instance=str(meta.get("MediaStorageSOPInstanceUID", "")),
            syntax=str(meta.get("TransferSyntaxUID", "")),
            offset=offset,
            length=len(dataset),
            sha256=hashlib.sha256(dataset).hexdigest(),
        )


def with_own_meta(path: Path, raw: bytes, dataset: Dataset, syntax: str) -> WireFile:
    """Write a Part 10 file of these dataset bytes whose meta group names the dataset's own UIDs."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = "1.2.3.4"
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta)
    path.write_bytes(bytes(128) + b"DICM" + buffer.getvalue() + raw)
    return read_wire_file(path)


@contextlib.contextmanager
def raw_datasets() -> Iterator[None]:
    """Have pynetdicom send and write datasets as they are, while this lasts."""
    before = _config.STORE_SEND_CHUNKED_DATASET, _config.STORE_RECV_CHUNKED_DATASET
    _config.STORE_SEND_CHUNKED_DATASET = _config.STORE_RECV_CHUNKED_DATASET = True
    try:
        yield
    finally:
        _config.STORE_SEND_CHUNKED_DATASET, _config.STORE_RECV_CHUNKED_DATASET = before


def _distinct(files: Iterable[WireFile]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(file.context for file in files))


def send_raw(node: Node, files: Sequence[WireFile], calling_ae: str = "MODALITY") -> list[int]:
    """Store files on one association; return a status each, NO_CONTEXT where none was accepted.

    pynetdicom's own thread now and then takes an answer away from the one that waits for it. What
    is left is then sent on a second association, but on no third.
    """
    statuses = _send_raw(node, files, calling_ae)
    if len(statuses) < len(files):
        statuses += _send_raw(node, files[len(statuses) :], calling_ae)
    assert len(statuses) == len(files), "the node does not answer"
    return statuses


def _send_raw(node: Node, files: Sequence[WireFile], calling_ae: str) -> list[int]:
    """Store files until an answer is missing; return the statuses so far."""
    contexts = [build_context(*pair) for pair in _distinct(files)]
    assert len(contexts) <= CONTEXTS_MAX
    ae = AE(calling_ae)
    ae.dimse_timeout = ANSWER_S
    with raw_datasets():
        association = ae.associate("127.0.0.1", node.port, contexts, "AZEKURA")
        try:
            if not association.is_established:
                assert association.is_rejected or association.is_aborted
                return [NO_CONTEXT] * len(files)
            accepted = {
                (str(each.abstract_syntax), str(each.transfer_syntax[0]))
                for each in association.accepted_contexts
            }
            statuses: list[int] = []
            for file in files:
                if file.context not in accepted:
                    statuses.append(NO_CONTEXT)
                    continue
                answer = association.send_c_store(file.path)
                if "Status" not in answer:
                    break
                statuses.append(answer.Status)
            return statuses
        finally:
            if association.is_established:
                association.release()


def get_raw(node: Node, files: Sequence[WireFile]) -> list[Fetched]:
    """Fetch the studies of files by C-GET, offering exactly each file's syntax; written raw."""
    pairs = _distinct(files)
    contexts = [build_context(STUDY_ROOT_GET), *(build_context(*pair) for pair in pairs)]
    assert len(contexts) <= CONTEXTS_MAX
    roles = [build_role(uid, scp_role=True) for uid in dict.fromkeys(pair[0] for pair in pairs)]
    fetched = []

    def keep(event: evt.Event) -> int:
        fetched.append(_fetched(event.dataset_path))
        return 0x0000

    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = list(dict.fromkeys(file.study for file in files))
    with raw_datasets():
        association = AE("GETTER").associate(
            "127.0.0.1", node.port, contexts, "AZEKURA", ext_neg=roles,
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )  # fmt: skip
        assert association.is_established
        try:
            answers = list(association.send_c_get(keys, STUDY_ROOT_GET))
        finally:
            association.release()
    final = answers[-1][0]
    assert final.Status == 0x0000, final
    assert final.NumberOfCompletedSuboperations == len(fetched)
    return fetched


def move_raw(node: Node, files: Sequence[WireFile], directory: Path) -> list[Fetched]:
    """Fetch the studies of files by movescu, which takes every syntax and writes what it reads.

    With +B it writes into the folder it runs in, whatever -od says.
    """
    directory.mkdir()
    studies = "\\".join(dict.fromkeys(file.study for file in files))
    run_tool([
        "/usr/bin/movescu", "-S", "-aet", "WORKSTATION", "-aec", "AZEKURA", "-aem", "WORKSTATION",
        "+B", "+xa", "-td", "30", "+P", str(node.peer_port),
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={studies}",
        "127.0.0.1", str(node.port),
    ], cwd=directory)  # fmt: skip
    return [_fetched(path) for path in sorted(directory.iterdir())]


def _fetched(path: os.PathLike[str]) -> Fetched:
    found = read_wire_file(Path(path))
    return Fetched(found.study, found.sop_instance, found.syntax, found.sha256)


def dataset_of(raw: bytes, syntax: str) -> Dataset:
    """Parse dataset bytes with pydicom."""
    uid = pydicom.uid.UID(syntax)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.filereader.read_dataset(
            io.BytesIO(raw), uid.is_implicit_VR, uid.is_little_endian
        )


def sendable_files(directory: Path) -> tuple[list[WireFile], list[WireFile]]:
    """Return pydicom's files as they are, and twins of those that can only be sent as such.

    The first are all that have a whole meta group. The second have the same dataset bytes under a
    meta group of the dataset's own UIDs: files without one, or whose meta group names another
    instance. What has no SOP Instance UID anywhere is in neither.
    """
    plain, twins = [], []
    for path in files_of_pydicom():
        file = _read_or_none(path)
        if file is not None and file.sop_class and file.sop_instance and file.syntax:
            plain.append(file)
        found = _header(path)
        if found is None or not found.get("SOPInstanceUID") or not found.get("SOPClassUID"):
            continue
        if file is not None and file.sop_instance == found.SOPInstanceUID:
            continue
        raw = path.read_bytes()[file.offset if file else 0 :]
        syntax = file.syntax if file else _syntax_without_meta(found)
        twins.append(with_own_meta(directory / path.name, raw, found, syntax))
    return plain, twins


def _read_or_none(path: Path) -> WireFile | None:
    try:
        return read_wire_file(path)
    except pydicom.errors.InvalidDicomError:
        return None


def _header(path: Path) -> Dataset | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, force=True, stop_before_pixels=True)
        except Exception:  # noqa: BLE001 - no DICOM file at all
            return None


def _syntax_without_meta(found: Dataset) -> str:
    implicit, little = found.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    return str(pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)

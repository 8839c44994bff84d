"""Rejection notes (IHE IOCM) on a whole node: hidden everywhere, counted right, never forgotten."""

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from appliance.archive.records import Rejected, Restored
from appliance.dicom.uid import KEY_OBJECT_SELECTION
from tests.support.bucket import Bucket
from tests.support.dimse import EXPLICIT, encode, small_ct
from tests.support.findscu import find_by_file
from tests.support.node import Node, run_tool
from tests.support.services import wait_for
from tests.support.shared_node import SharedNode
from tests.support.wire import WireFile, get_raw, send_raw, with_own_meta

CODES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
COUNT = 4
REJECTED = 2


class Hospital:
    """The node and what is asked of it."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.bucket = Bucket(node)
        self.folder = folder

    def make_study(self) -> list[WireFile]:
        """Return the instances of a new study of one series; nothing is sent."""
        uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        return [self._file(*small_ct(**uids)) for _ in range(COUNT)]

    def _file(self, dataset: Dataset, raw: bytes) -> WireFile:
        path = self.folder / f"{generate_uid()}.dcm"
        return with_own_meta(path, raw, dataset, EXPLICIT)

    def store(self, files: list[WireFile]) -> None:
        assert set(send_raw(self.node, files)) == {0x0000}

    def storescu(self, file: WireFile) -> None:
        """Send as a workstation with DCMTK would; re-encoded, which a note outlives."""
        self.node.dcmtk("storescu", "-R", str(file.path))

    def make_note(self, files: list[WireFile], code: str) -> WireFile:
        """Return a key object document that rejects files, in the study of the first."""
        dataset, _ = small_ct(
            StudyInstanceUID=files[0].study,
            SeriesInstanceUID=generate_uid(),
            SOPClassUID=KEY_OBJECT_SELECTION,
            Modality="KO",
        )
        for keyword in ("PixelData", "Rows", "Columns"):
            delattr(dataset, keyword)
        del dataset[0xFFFCFFFC]
        dataset.ValueType = "CONTAINER"
        dataset.ConceptNameCodeSequence = [_coded(code)]
        evidence = Dataset()
        evidence.StudyInstanceUID = files[0].study
        evidence.ReferencedSeriesSequence = [Dataset()]
        series = evidence.ReferencedSeriesSequence[0]
        series.SeriesInstanceUID = files[0].series
        series.ReferencedSOPSequence = [Dataset() for _ in files]
        for item, file in zip(series.ReferencedSOPSequence, files, strict=True):
            item.ReferencedSOPClassUID = file.sop_class
            item.ReferencedSOPInstanceUID = file.sop_instance
        dataset.CurrentRequestedProcedureEvidenceSequence = [evidence]
        return self._file(dataset, encode(dataset))

    def seen(self, study: str) -> set[str]:
        """Return the instances that C-FIND at the instance level finds."""
        series = find_by_file(self.node, self.folder, _keys(study, "0020,000e UI"), level="SERIES")
        found: set[str] = set()
        for each in series:
            keys = _keys(study, "0008,0018 UI")
            keys["0020,000e UI"] = str(each.SeriesInstanceUID).encode()
            answers = find_by_file(self.node, self.folder, keys, level="IMAGE")
            found |= {str(answer.SOPInstanceUID) for answer in answers}
        return found

    def counts(self, study: str) -> tuple[int, int, str] | None:
        """Return what a query says of a study: instances, series, modalities."""
        keys = _keys(study, "0020,1208 IS", "0020,1206 IS", "0008,0061 CS")
        answers = find_by_file(self.node, self.folder, keys)
        if not answers:
            return None
        (answer,) = answers
        return (
            int(answer.NumberOfStudyRelatedInstances),
            int(answer.NumberOfStudyRelatedSeries),
            str(answer.ModalitiesInStudy),
        )

    def await_seen(self, study: str, expected: set[str]) -> None:
        """Wait until the note, which is carried out behind its C-STORE, has its effect."""
        wait_for(lambda: self.seen(study) == expected)

    def records(self, kind: type) -> list:
        return [record for record in self.bucket.records() if isinstance(record, kind)]


def _coded(code: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", CODES[code]
    return item


def _keys(study: str, *asked: str) -> dict[str, bytes]:
    return {"0020,000d UI": study.encode(), **dict.fromkeys(asked, b"")}


def _uids(files: list[WireFile]) -> set[str]:
    return {file.sop_instance for file in files}


@pytest.fixture(scope="module")
def hospital(shared: SharedNode, tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(shared.node, tmp_path_factory.mktemp("rejection"))


@pytest.mark.parametrize("code", CODES)
def test_note_hides_what_it_names_and_itself(hospital: Hospital, code: str) -> None:
    """From C-FIND, C-GET and C-MOVE; counts are of what is served; the ledger has the record."""
    files = hospital.make_study()
    hospital.store(files)
    assert hospital.counts(files[0].study) == (COUNT, 1, "CT")
    note = hospital.make_note(files[:REJECTED], code)
    hospital.storescu(note)
    kept = files[REJECTED:]
    hospital.await_seen(files[0].study, _uids(kept))
    assert hospital.counts(files[0].study) == (len(kept), 1, "CT")
    assert {each.sop_instance for each in get_raw(hospital.node, files)} == _uids(kept)
    assert _moved(hospital, files[0].study, code) == _uids(kept)
    (record,) = wait_for(lambda: _recorded(hospital, files[0].study))
    assert set(record.sop_instance_uids) == _uids([*files[:REJECTED], note])
    assert (record.code, record.note_uid) == (code, note.sop_instance)


def _recorded(hospital: Hospital, study: str) -> list[Rejected]:
    return [each for each in hospital.records(Rejected) if each.study_instance_uid == study]


def _moved(hospital: Hospital, study: str, name: str) -> set[str]:
    out = hospital.folder / f"moved-{name}"
    out.mkdir()
    run_tool([
        "/usr/bin/movescu", "-S", "-aet", "WORKSTATION", "-aec", "AZEKURA", "-aem", "WORKSTATION",
        "+P", str(hospital.node.peer_port), "-od", str(out), "-k", "QueryRetrieveLevel=STUDY",
        "-k", f"StudyInstanceUID={study}", "127.0.0.1", str(hospital.node.port),
    ])  # fmt: skip
    return {pydicom.dcmread(path).SOPInstanceUID for path in out.iterdir()}


def test_rejected_stays_hidden_when_it_comes_again(hospital: Hospital) -> None:
    """The same bytes, and other bytes under its UID; only --undo brings it back."""
    files = hospital.make_study()
    hospital.store(files)
    hospital.storescu(hospital.make_note(files, "113038"))
    hospital.await_seen(files[0].study, set())
    assert hospital.counts(files[0].study) is None
    hospital.store(files[:1])
    hospital.storescu(files[1])
    assert hospital.seen(files[0].study) == set()
    hospital.node.azekura("study", "reject", files[0].study, "--undo", "--instance",
                          files[0].sop_instance)  # fmt: skip
    assert hospital.seen(files[0].study) == {files[0].sop_instance}
    hospital.node.azekura("study", "reject", files[0].study, "--undo")
    assert hospital.seen(files[0].study) >= _uids(files)
    restored = list(hospital.records(Restored))
    assert {each.study_instance_uid for each in restored} == {files[0].study}


def test_note_that_comes_before_its_instances_hides_them(hospital: Hospital) -> None:
    """Order is nobody's promise."""
    files = hospital.make_study()
    note = hospital.make_note(files[:REJECTED], "113037")
    hospital.storescu(note)
    wait_for(lambda: _recorded(hospital, files[0].study))
    hospital.store(files)
    assert hospital.seen(files[0].study) == _uids(files[REJECTED:])


def test_document_with_another_title_hides_nothing(hospital: Hospital, monkeypatch) -> None:
    """A key object for teaching (113004) is an instance like any other."""
    monkeypatch.setitem(CODES, "113004", "For Teaching")
    files = hospital.make_study()
    note = hospital.make_note(files[:1], "113004")
    hospital.store(files)
    hospital.storescu(note)
    assert hospital.counts(files[0].study) == (COUNT + 1, 2, "['CT', 'KO']")


def test_rejection_and_restoration_outlive_the_index(hospital: Hospital) -> None:
    """Made anew from ledger and packs, the index hides and serves the same; a note counts once."""
    node = hospital.node
    rejected, restored = hospital.make_study(), hospital.make_study()
    hospital.store([*rejected, *restored])
    for files in (rejected, restored):
        hospital.storescu(hospital.make_note(files[:REJECTED], "113001"))
        hospital.await_seen(files[0].study, _uids(files[REJECTED:]))
    node.azekura("study", "reject", restored[0].study, "--undo")
    node.drain()
    wanted = {each[0].study: hospital.seen(each[0].study) for each in (rejected, restored)}
    before = len(hospital.records(Rejected))
    node.azekura("rebuild-index")
    assert {study: hospital.seen(study) for study in wanted} == wanted
    node.kill("receive")
    node.start("receive")
    assert {study: hospital.seen(study) for study in wanted} == wanted
    assert len(hospital.records(Rejected)) == before

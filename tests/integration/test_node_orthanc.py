"""A whole node among common tools: DCMTK once per syntax family, Orthanc in both directions.

Interoperability, not identity: DCMTK and Orthanc write datasets anew as they see fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.support.bucket import Bucket
from tests.support.dimse import EXPLICIT, IMPLICIT
from tests.support.findscu import find_by_file
from tests.support.node import Node, run_tool
from tests.support.orthanc import Orthanc, orthanc
from tests.support.services import wait_for
from tests.support.shared_node import SharedNode


@dataclass(frozen=True)
class Family:
    """A transfer syntax family: a file in it, and DCMTK's letter for the proposal."""

    file: str
    syntax: str
    letter: str

    @property
    def path(self) -> str:
        return str(get_testdata_file(self.file, download=False))

    def read(self) -> pydicom.Dataset:
        return pydicom.dcmread(self.path)


FAMILIES = {
    "implicit": Family("rtdose.dcm", IMPLICIT, "i"),
    "explicit": Family("CT_small.dcm", EXPLICIT, "e"),
    "big endian": Family("MR_small_bigendian.dcm", "1.2.840.10008.1.2.2", "b"),
    "JPEG baseline": Family("SC_rgb_small_odd_jpeg.dcm", "1.2.840.10008.1.2.4.50", "y"),
    "JPEG extended": Family("JPEG-lossy.dcm", "1.2.840.10008.1.2.4.51", "x"),
    "JPEG lossless": Family("JPGLosslessP14SV1_1s_1f_8b.dcm", "1.2.840.10008.1.2.4.70", "s"),
    "JPEG-LS": Family("emri_small_jpeg_ls_lossless.dcm", "1.2.840.10008.1.2.4.80", "t"),
    "JPEG 2000 lossless": Family("GDCMJ2K_TextGBR.dcm", "1.2.840.10008.1.2.4.90", "v"),
    "JPEG 2000": Family("JPEG2000.dcm", "1.2.840.10008.1.2.4.91", "w"),
    "RLE": Family("OBXXXX1A_rle.dcm", "1.2.840.10008.1.2.5", "r"),
}


@dataclass
class Pair:
    """A node and an Orthanc that know each other."""

    node: Node
    other: Orthanc
    folder: Path

    def served(self, dataset: pydicom.Dataset) -> str:
        """Return the transfer syntax in which the node serves an instance, as a query says."""
        keys = {
            "0020,000d UI": dataset.StudyInstanceUID.encode(),
            "0020,000e UI": dataset.SeriesInstanceUID.encode(),
            "0008,0018 UI": dataset.SOPInstanceUID.encode(),
            "0008,3002 UI": b"",
        }
        (answer,) = find_by_file(self.node, self.folder, keys, level="IMAGE")
        return str(answer.AvailableTransferSyntaxUID)

    def find(self, study: str) -> list[dict]:
        """Ask the node from Orthanc; return the simplified answers."""
        query = {"Level": "Study", "Query": {"StudyInstanceUID": study, "PatientName": ""}}
        asked = self.other.post("/modalities/node/query", query)
        path = f"/queries/{asked['ID']}/answers"
        return [self.other.get(f"{path}/{each}/content?simplify") for each in self.other.get(path)]

    def retrieve(self, study: str) -> None:
        """Have Orthanc find a study and move it to itself."""
        asked = self.other.post(
            "/modalities/node/query", {"Level": "Study", "Query": {"StudyInstanceUID": study}}
        )
        self.other.post(f"/queries/{asked['ID']}/retrieve", b"ORTHANC")

    def upload(self, family: Family) -> str:
        """Put a file into Orthanc, as if it were a modality's; return Orthanc's id."""
        return self.other.post("/instances", Path(family.path).read_bytes())["ID"]

    def held(self) -> dict[str, str]:
        """Return the instances that Orthanc has: SOP Instance UID to transfer syntax."""
        found = {}
        for instance in self.other.get("/instances"):
            tags = self.other.get(f"/instances/{instance}/simplified-tags")
            syntax = self.other.get(f"/instances/{instance}/metadata?expand")["TransferSyntax"]
            found[tags["SOPInstanceUID"]] = syntax
        return found

    def clear(self) -> None:
        for patient in self.other.get("/patients"):
            self.other.delete(f"/patients/{patient}")


@pytest.fixture(scope="module")
def pair(shared: SharedNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("among-others")
    with orthanc(folder, shared.ports["ORTHANC"], "AZEKURA", shared.node.port) as other:
        yield Pair(shared.node, other, folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_dcmtk_stores_and_gets_every_syntax_family(pair: Pair, name: str) -> None:
    """By storescu, which proposes that family; back by getscu, which prefers it."""
    family = FAMILIES[name]
    dataset = family.read()
    pair.node.dcmtk("storescu", "-R", f"-x{family.letter}", family.path)
    assert pair.served(dataset) == family.syntax
    fetched = _get(pair, dataset, f"storescu-{name}", f"+x{family.letter}")
    assert fetched.file_meta.TransferSyntaxUID == _comes_in(family.syntax)
    assert fetched.PixelData == dataset.PixelData


def _comes_in(syntax: str) -> str:
    """Return what getscu gets: it never proposes implicit VR alone, so that is converted."""
    return EXPLICIT if syntax == IMPLICIT else syntax


def _get(pair: Pair, dataset: pydicom.Dataset, name: str, *options: str) -> pydicom.Dataset:
    out = pair.folder / name
    out.mkdir()
    pair.node.dcmtk(
        "getscu", "+B", "-S", *options, "-od", str(out), "-k", "QueryRetrieveLevel=IMAGE",
        "-k", f"StudyInstanceUID={dataset.StudyInstanceUID}",
        "-k", f"SeriesInstanceUID={dataset.SeriesInstanceUID}",
        "-k", f"SOPInstanceUID={dataset.SOPInstanceUID}",
    )  # fmt: skip
    (fetched,) = [pydicom.dcmread(path) for path in out.iterdir()]
    assert fetched.SOPInstanceUID == dataset.SOPInstanceUID
    return fetched


@pytest.mark.parametrize("name", FAMILIES)
def test_dcmsend_stores_every_syntax_family(pair: Pair, name: str) -> None:
    """It decides itself what to decompress; what it sent comes back, lossless as it was."""
    family = FAMILIES[name]
    dataset = family.read()
    output = pair.node.dcmtk("dcmsend", "-v", family.path)
    assert "with status SUCCESS  : 1" in output, output
    served = pair.served(dataset)
    (letter,) = [each.letter for each in FAMILIES.values() if each.syntax == served]
    fetched = _get(pair, dataset, f"dcmsend-{name}", f"+x{letter}")
    assert fetched.file_meta.TransferSyntaxUID == _comes_in(served)
    if served == family.syntax:
        assert fetched.PixelData == dataset.PixelData
    else:
        assert (fetched.pixel_array == dataset.pixel_array).all()


@pytest.mark.parametrize("option", ["+x=", "+xe"])
def test_dcmtk_gets_uncompressed_what_is_stored_compressed(pair: Pair, option: str) -> None:
    """A requestor without the codec: the node decodes; pixels are those of the file."""
    family = FAMILIES["JPEG 2000 lossless"]
    dataset = family.read()
    pair.node.dcmtk("storescu", "-R", "-xv", family.path)
    fetched = _get(pair, dataset, f"uncompressed{option}", option)
    assert not fetched.file_meta.TransferSyntaxUID.is_compressed
    assert (fetched.pixel_array == dataset.pixel_array).all()


def test_orthanc_stores_to_the_node(pair: Pair) -> None:
    """As a modality would, every family; the node answers its queries afterwards."""
    pair.clear()
    stored = [pair.upload(family) for family in FAMILIES.values()]
    sent = pair.other.post("/modalities/node/store", {"Resources": stored, "Synchronous": True})
    assert sent["FailedInstancesCount"] == 0
    assert sent["InstancesCount"] == len(FAMILIES)
    for family in FAMILIES.values():
        dataset = family.read()
        (answer,) = pair.find(dataset.StudyInstanceUID)
        assert answer["PatientName"] == str(dataset.get("PatientName", ""))


def test_orthanc_finds_and_retrieves_from_the_node(pair: Pair) -> None:
    """C-FIND, C-MOVE to itself: every family arrives in its own syntax."""
    for family in FAMILIES.values():
        pair.node.dcmtk("storescu", "-R", f"-x{family.letter}", family.path)
    pair.clear()
    for family in FAMILIES.values():
        pair.retrieve(family.read().StudyInstanceUID)
    datasets = [family.read() for family in FAMILIES.values()]
    expected = {dataset.SOPInstanceUID: pair.served(dataset) for dataset in datasets}
    wait_for(lambda: len(pair.other.get("/instances")) == len(expected))
    assert pair.held() == expected


def test_node_moves_to_orthanc_from_the_bucket(pair: Pair) -> None:
    """movescu names Orthanc as the destination; the studies were evicted before."""
    pair.clear()
    studies = [FAMILIES[name].read().StudyInstanceUID for name in ("explicit", "JPEG-LS")]
    for name in ("explicit", "JPEG-LS"):
        family = FAMILIES[name]
        pair.node.dcmtk("storescu", "-R", f"-x{family.letter}", family.path)
    pair.node.drain()
    for study in studies:
        pair.node.azekura("study", "evict", study)
    output = run_tool([
        "/usr/bin/movescu", "-v", "-S", "-aet", "WORKSTATION", "-aec", "AZEKURA",
        "-aem", "ORTHANC", "-k", "QueryRetrieveLevel=STUDY",
        "-k", "StudyInstanceUID=" + "\\".join(studies), "127.0.0.1", str(pair.node.port),
    ])  # fmt: skip
    assert "Received Final Move Response (Success)" in output
    datasets = [FAMILIES[name].read() for name in ("explicit", "JPEG-LS")]
    expected = {dataset.SOPInstanceUID: pair.served(dataset) for dataset in datasets}
    wait_for(lambda: len(pair.other.get("/instances")) == len(expected))
    assert pair.held() == expected


def test_orthanc_gets_its_commitment(pair: Pair) -> None:
    """At the rung `locked`, on the association that the node opens to it."""
    family = FAMILIES["explicit"]
    dataset = family.read()
    pair.clear()
    stored = pair.upload(family)
    pair.other.post("/modalities/node/store", stored.encode())
    asked = pair.other.post("/modalities/node/storage-commitment", {"Resources": [stored]})

    def finished() -> dict | None:
        report = pair.other.get(f"/storage-commitment/{asked['ID']}")
        return report if report["Status"] != "Pending" else None

    report = wait_for(finished)
    assert report["Status"] == "Success"
    assert [each["SOPInstanceUID"] for each in report["Success"]] == [dataset.SOPInstanceUID]
    bucket = Bucket(pair.node)
    record = bucket.pack_of(dataset.SOPInstanceUID)
    assert record is not None
    assert bucket.is_locked(record)

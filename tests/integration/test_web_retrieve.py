"""WADO of a whole node on pydicom's real files: instances, metadata, bulk, frames, pictures.

Judged by pydicom on the files themselves, and by dicomweb-client as a client that is not ours.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import apply_modality_lut

from appliance.dicom.uid import EXPLICIT_VR_LITTLE_ENDIAN, is_big_endian
from appliance.pixels.layout import is_encapsulated
from tests.support.node import Node
from tests.support.running_node import running_node
from tests.support.web_client import AS_STORED, WebClient, dataset_of_part, parts_of
from tests.support.wire import WireFile, send_raw, sendable_files

OCTETS = "application/octet-stream"
RLE = "1.2.840.10008.1.2.5"
UID_LETTERS = frozenset("0.123456789")


@dataclass
class Sent:
    """A node with the first version of every instance of pydicom's files."""

    node: Node
    client: WebClient
    files: list[WireFile]

    def path(self, file: WireFile) -> str:
        return f"studies/{file.study}/series/{file.series}/instances/{file.sop_instance}"


@pytest.fixture(scope="module")
def sent(tmp_path_factory, s3_server, s3_bucket) -> Iterator[Sent]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "twins").mkdir()
    plain, _ = sendable_files(folder / "twins")
    first = {file.sop_instance: file for file in reversed(plain)}
    daemons = ("receive", "uplink", "web")
    with running_node(folder / "node", s3_server, s3_bucket, *daemons) as node:
        files = list(first.values())
        statuses = send_raw(node, files)
        stored = [
            file for file, status in zip(files, statuses, strict=True)
            if status == 0 and UID_LETTERS.issuperset(file.study + file.series + file.sop_instance)
        ]  # fmt: skip
        assert len(stored) > 100
        yield Sent(node, WebClient(node), stored)


def read(file: WireFile) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file.path)


def with_pixels(sent: Sent) -> Iterator[tuple[WireFile, pydicom.Dataset, np.ndarray]]:
    """Yield every other file whose pixels pydicom can decode here, and the pixels."""
    for file in sent.files[::2]:
        dataset = read(file)
        if "PixelData" not in dataset or "Rows" not in dataset or file.name in ODD:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield file, dataset, pixel_array(dataset, index=0)
            except Exception:  # noqa: BLE001
                continue


def test_every_instance_comes_back_byte_for_byte(sent: Sent) -> None:
    """Whole studies as stored, each dataset's sha256 that of the file; and one alone."""
    by_study: dict[str, dict[str, WireFile]] = {}
    for file in sent.files:
        by_study.setdefault(file.study, {})[file.sop_instance] = file
    for study, expected in by_study.items():
        found = {}
        for headers, body in sent.client.parts(f"studies/{study}", AS_STORED):
            uid = headers["Content-Location"].rpartition("/")[2]
            found[uid] = hashlib.sha256(dataset_of_part(body)).hexdigest()
            assert f"transfer-syntax={expected[uid].syntax}" in headers["Content-Type"]
        assert found == {uid: file.sha256 for uid, file in expected.items()}
    file = sent.files[0]
    answer = sent.client.get(sent.path(file), "application/dicom; transfer-syntax=*")
    assert hashlib.sha256(dataset_of_part(answer.content)).hexdigest() == file.sha256
    assert int(answer.headers["Content-Length"]) == len(answer.content)


def test_a_transfer_syntax_that_is_asked_for_is_given_or_refused(sent: Sent) -> None:
    """Explicit little endian of an encapsulated and of a big endian instance; no other way."""
    compressed = next(f for f in sent.files if f.syntax == RLE)
    big = next(f for f in sent.files if is_big_endian(f.syntax))
    for file in (compressed, big):
        kind = 'multipart/related; type="application/dicom"; transfer-syntax={}'
        ((headers, body),) = sent.client.parts(
            sent.path(file), kind.format(EXPLICIT_VR_LITTLE_ENDIAN)
        )
        assert EXPLICIT_VR_LITTLE_ENDIAN in headers["Content-Type"]
        found = pydicom.dcmread(io.BytesIO(body))
        assert np.array_equal(found.pixel_array, read(file).pixel_array)
        ((headers, _),) = sent.client.parts(
            sent.path(file), 'multipart/related; type="application/dicom"'
        )
        assert EXPLICIT_VR_LITTLE_ENDIAN in headers["Content-Type"]
        refused = sent.client.get(sent.path(file), kind.format("1.2.840.10008.1.2.4.90"))
        assert refused.status_code == 406
        assert sent.client.get(sent.path(file), "text/html").status_code == 406


def differences(found: dict, expected: dict, path: str = "") -> list[str]:
    """Return where two datasets in JSON differ, but for padding, null, and where bulk begins."""
    differing = []
    for key in sorted(found.keys() | expected.keys()):
        ours, theirs = found.get(key), expected.get(key)
        if key.endswith("0000") or key in ("00080005", "00083002"):
            continue  # group lengths; text is Unicode; what metadata adds
        if ours is None or theirs is None or ours["vr"] != theirs["vr"]:
            differing.append(path + key)
        elif ours["vr"] == "SQ":
            items, others = ours.get("Value", []), theirs.get("Value", [])
            if len(items) != len(others):
                differing.append(path + key)
            for item, other in zip(items, others, strict=False):
                differing += differences(item, other, f"{path}{key}/")
        elif "BulkDataURI" in ours or "InlineBinary" in ours:
            if "BulkDataURI" not in ours and ours.get("InlineBinary") != theirs["InlineBinary"]:
                differing.append(path + key)
        elif plain(ours) != plain(theirs):
            differing.append(path + key)
    return differing


def plain(element: dict) -> list:
    return [
        each.strip() if isinstance(each, str) else each or "" if each is None else each
        for each in element.get("Value", [])
    ]


def test_metadata_is_what_pydicom_makes_of_the_file(sent: Sent) -> None:
    """Every element of every file that parses; bulk is referred to exactly where it is long."""
    compared = 0
    for file in sent.files:
        dataset = read(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = dataset.to_json_dict()
            except Exception:  # noqa: BLE001
                continue
        (found,) = sent.client.json(sent.path(file) + "/metadata")
        assert found["00080018"]["Value"] == [file.sop_instance]
        if file.name in ODD:
            continue
        # palettes are swapped in ours, as they must be; pydicom leaves words of big endian alone
        for key in ("00281201", "00281202", "00281203") if is_big_endian(file.syntax) else ():
            found.pop(key, None)
            expected.pop(key, None)
        assert differences(found, expected) == [], file.name
        pixels = found.get("7FE00010")
        assert pixels is None or pixels["BulkDataURI"].endswith("/bulkdata/7FE00010")
        compared += 1
    assert compared > 100


ODD = {
    "SC_rgb_jpeg.dcm",  # implicit VR where explicit VR is declared
    "emri_small_jpeg_2k_lossless_too_short.dcm",
    "rtplan_truncated.dcm",
    "meta_missing_tsyntax.dcm",
    "gdcm-US-ALOKA-16.dcm",
}


def test_bulk_data_is_the_value(sent: Sent) -> None:
    """Behind each reference lie the element's own bytes, in parts or alone."""
    seen = 0
    for file in sent.files[::5]:
        (metadata,) = sent.client.json(sent.path(file) + "/metadata")
        dataset = read(file)
        for key, element in metadata.items():
            if "BulkDataURI" not in element or is_encapsulated(file.syntax):
                continue
            url = element["BulkDataURI"].removeprefix(sent.client.base)
            answer = sent.client.get(url, OCTETS)
            assert answer.status_code == 200
            expected = dataset.get_item(int(key, 16)).value
            if not is_big_endian(file.syntax):
                assert answer.content == expected, (file.name, key)
            ((_, body),) = sent.client.parts(url, f'multipart/related; type="{OCTETS}"')
            assert body == answer.content
            seen += 1
    assert seen > 5
    file, dataset = named(sent, "waveform_ecg.dcm")
    (metadata,) = sent.client.json(sent.path(file) + "/metadata")
    for number, item in enumerate(dataset.WaveformSequence):
        nested = metadata["54000100"]["Value"][number]["54001010"]
        assert nested["BulkDataURI"].endswith(f"/bulkdata/54000100/{number + 1}/54001010")
        url = nested["BulkDataURI"].removeprefix(sent.client.base)
        assert sent.client.get(url, OCTETS).content == item.WaveformData
    missing = sent.client.get(sent.path(sent.files[0]) + "/bulkdata/00991234", OCTETS)
    assert missing.status_code == 404


def test_frames_are_the_pixels(sent: Sent) -> None:
    """The first frame as octets is what pydicom decodes."""
    compared = 0
    for file, dataset, _ in with_pixels(sent):
        accept = f'multipart/related; type="{OCTETS}"; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}'
        answer = sent.client.get(sent.path(file) + "/frames/1", accept)
        assert answer.status_code == 200, (file.name, answer.text)
        kind = "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
        whole = sent.client.get(sent.path(file), kind)
        plain = pydicom.dcmread(io.BytesIO(whole.content))
        frames = int(dataset.get("NumberOfFrames") or 1)
        ((headers, body),) = parts_of(answer)
        assert headers["Content-Type"].startswith(OCTETS)
        if plain.BitsAllocated > 1:
            length = len(body)
            assert length == (len(plain.PixelData) // frames if frames > 1 else length)
            assert body == plain.PixelData[:length], file.name
        compared += 1
    assert compared > 30


def test_frames_as_stored_are_the_fragments(sent: Sent) -> None:
    """Of a run of several encapsulated frames each is its own fragment, with its own media type."""
    seen = 0
    for file in sent.files:
        if not is_encapsulated(file.syntax):
            continue
        dataset = read(file)
        frames = int(dataset.get("NumberOfFrames") or 1)
        if "PixelData" not in dataset or frames < 2 or file.name in ODD:
            continue
        expected = list(generate_frames(dataset.PixelData, number_of_frames=frames))[:3]
        numbers = ",".join(str(number + 1) for number in range(len(expected)))
        found = sent.client.parts(
            sent.path(file) + f"/frames/{numbers}", "multipart/related; type=*/*; transfer-syntax=*"
        )
        assert [body for _, body in found] == expected, file.name
        assert all(
            f"transfer-syntax={file.syntax}" in headers["Content-Type"] for headers, _ in found
        )
        beyond = sent.client.get(sent.path(file) + f"/frames/{frames + 1}", "*/*")
        assert beyond.status_code == 404
        seen += 1
    assert seen >= 2
    for frames in ("0", "x", "1,,2", "-1", "1;2"):
        path = sent.path(sent.files[0]) + f"/frames/{frames}"
        assert sent.client.get(path, "*/*").status_code == 400, frames


def test_pictures_are_the_pixels_through_the_window(sent: Sent) -> None:
    """Grayscale with a given window, to the last level; colour as it is; small ones fit."""
    file, dataset = named(sent, "CT_small.dcm")
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(float)
    center, width = 40.0, 400.0
    expected = np.clip(((values - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255).round()
    answer = sent.client.get(
        sent.path(file) + f"/rendered?window={center},{width},linear", "image/png"
    )
    assert answer.headers["Content-Type"] == "image/png"
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.array_equal(found, expected.astype(np.uint8))
    sizes = {
        quality: len(
            sent.client.get(sent.path(file) + f"/rendered?quality={quality}", "image/jpeg").content
        )
        for quality in (10, 95)
    }
    assert sizes[10] < sizes[95]
    small = sent.client.get(sent.path(file) + "/rendered?viewport=64,32", "image/png")
    assert Image.open(io.BytesIO(small.content)).size == (32, 32)
    part = sent.client.get(sent.path(file) + "/rendered?viewport=64,64,32,32,64,64", "image/gif")
    assert Image.open(io.BytesIO(part.content)).size == (64, 64)
    file, dataset = next(
        (file, dataset) for file, dataset, pixels in with_pixels(sent)
        if dataset.PhotometricInterpretation == "RGB" and pixels.dtype == np.uint8
    )  # fmt: skip
    answer = sent.client.get(sent.path(file) + "/rendered", "image/png")
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(answer.content))), pixel_array(dataset, index=0)
    )
    thumbnail = sent.client.get(f"studies/{file.study}/thumbnail", "image/*")
    assert max(Image.open(io.BytesIO(thumbnail.content)).size) <= 200
    for query in ("window=1", "window=1,0", "window=a,b", "viewport=0,0", "viewport=9999999,1",
                  "viewport=1,2,3", "quality=0", "quality=101"):  # fmt: skip
        assert sent.client.get(sent.path(file) + f"/rendered?{query}", "*/*").status_code == 400, (
            query
        )


def named(sent: Sent, name: str) -> tuple[WireFile, pydicom.Dataset]:
    file = next(file for file in sent.files if file.path.name == name)
    return file, read(file)


def test_everything_that_pydicom_decodes_is_rendered(sent: Sent) -> None:
    """Palettes, colour spaces, one bit, signed, 32 bits: a picture of the right size."""
    refused = []
    count = 0
    for file, dataset, _ in with_pixels(sent):
        answer = sent.client.get(sent.path(file) + "/rendered", "image/png")
        if answer.status_code != 200:
            refused.append((file.name, answer.status_code))
            continue
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.size == (dataset.Columns, dataset.Rows), file.name
        count += 1
    assert count > 30
    assert len(refused) <= 3, refused


def test_an_instance_without_an_image_is_not_rendered(sent: Sent) -> None:
    """A report, a waveform: 404 with a reason, and the worker lives on."""
    file, _ = named(sent, "reportsi.dcm")
    for path in ("/rendered", "/frames/1", "/thumbnail"):
        assert sent.client.get(sent.path(file) + path, "*/*").status_code == 404


def test_wado_uri(sent: Sent) -> None:
    """The old way gives the same instance and the same picture."""
    file, _ = named(sent, "CT_small.dcm")
    base = (
        f"wado?requestType=WADO&studyUID={file.study}&seriesUID={file.series}"
        f"&objectUID={file.sop_instance}"
    )
    answer = sent.client.get(f"{base}&contentType=application/dicom&transferSyntax=*")
    assert hashlib.sha256(dataset_of_part(answer.content)).hexdigest() == file.sha256
    answer = sent.client.get(f"{base}&windowCenter=40&windowWidth=400&contentType=image/png")
    rendered = sent.client.get(sent.path(file) + "/rendered?window=40,400", "image/png")
    assert answer.content == rendered.content
    assert sent.client.get(base).headers["Content-Type"] == "image/jpeg"
    for bad in ("wado", "wado?requestType=WADO", f"{base}&frameNumber=0", f"{base}&anonymize=yes"):
        assert sent.client.get(bad).status_code == 400, bad


def test_dicomweb_client_gets_along(sent: Sent) -> None:
    """Its calls for searching and retrieving, as its users make them."""
    file, dataset = named(sent, "CT_small.dcm")
    client = DICOMwebClient(f"{sent.client.base}/dicom-web", session=sent.client.session)
    place = (file.study, file.series, file.sop_instance)
    (study,) = client.search_for_studies(search_filters={"StudyInstanceUID": file.study})
    assert study["00201208"]["Value"] == [1]
    assert client.search_for_instances(file.study, file.series)
    metadata = client.retrieve_instance_metadata(*place)
    assert metadata["00280010"]["Value"] == [dataset.Rows]
    assert client.retrieve_bulkdata(metadata["7FE00010"]["BulkDataURI"]) == [dataset.PixelData]
    assert client.retrieve_instance(*place).PixelData == dataset.PixelData
    (found,) = client.retrieve_study(file.study)
    assert found.SOPInstanceUID == file.sop_instance
    (frame,) = client.retrieve_instance_frames(*place, frame_numbers=[1])
    assert frame == dataset.PixelData
    picture = client.retrieve_instance_rendered(*place, media_types=("image/png",))
    assert Image.open(io.BytesIO(picture)).size == (dataset.Columns, dataset.Rows)


def test_what_is_not_there_is_not_found(sent: Sent) -> None:
    """Unknown UIDs and a UID of another study: 404, and 400 for what is no UID."""
    file, other = sent.files[0], next(f for f in sent.files if f.study != sent.files[0].study)
    mixed = f"studies/{other.study}/series/{file.series}/instances/{file.sop_instance}"
    for path in ("studies/1.2.3.4", f"studies/{file.study}/series/1.2.3", mixed):
        for tail in ("", "/metadata"):
            assert sent.client.get(path + tail, "*/*").status_code == 404, path
    for path in ("studies/1.2.3'", "studies/%00", "studies/" + "1" * 65, "studies/a/metadata"):
        assert sent.client.get(path, "*/*").status_code == 400, path

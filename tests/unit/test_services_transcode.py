"""Rewriting instances: pixels equal to pydicom's own, text untouched, workers that die."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from appliance.dicom.uid import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from appliance.foundation.errors import DatasetNotUnderstood, LimitExceeded
from appliance.pixels import transcode
from appliance.pixels.reencode import reencode
from appliance.pixels.transcode import Transcoder
from tests.support.services import raw_test_file, wait_for

COMPRESSED = [
    "JPEG2000.dcm",
    "MR_small_jp2klossless.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "rtdose_rle.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEGLSNearLossless_16.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_dcmtk_+eb+cy+s2.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "examples_ybr_color.dcm",
]
NATIVE = [
    "CT_small.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "rtdose_expb.dcm",
    "liver_expb_1frame.dcm",
]
TARGETS = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]


@pytest.fixture(scope="module")
def transcoder():
    transcoder = Transcoder()
    yield transcoder
    transcoder.close_idle()


def parse(raw, syntax):
    dataset = read_dataset(
        io.BytesIO(bytes(raw)),
        syntax == IMPLICIT_VR_LITTLE_ENDIAN,
        syntax != EXPLICIT_VR_BIG_ENDIAN,
    )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*COMPRESSED, *NATIVE])
def test_transcoded_pixels_are_what_pydicom_decodes(transcoder, name, target):
    raw, source, original = raw_test_file(name)
    with transcoder.converted(memoryview(raw), source, target) as converted:
        dataset = parse(converted, target)
    assert dataset.pixel_array.shape == original.pixel_array.shape
    assert (dataset.pixel_array == original.pixel_array).all()
    assert dataset.SOPInstanceUID == original.SOPInstanceUID
    for keyword in ("PatientName", "StudyInstanceUID", "Rows", "BitsStored", "PixelSpacing"):
        assert dataset.get(keyword) == original.get(keyword)
    if dataset.SamplesPerPixel > 1:
        assert dataset.PhotometricInterpretation in ("RGB", "YBR_FULL")
        if name in COMPRESSED:
            assert dataset.PlanarConfiguration == 0


def test_transcoded_12_bit_jpeg_is_what_dcmtk_decodes(transcoder, tmp_path):
    """pydicom itself has no decoder for it; DCMTK does."""
    raw, source, _ = raw_test_file("JPGExtended.dcm")
    out = str(tmp_path / "decoded.dcm")
    path = get_testdata_file("JPGExtended.dcm")
    subprocess.run(["dcmdjpeg", path, out], check=True, capture_output=True)
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN) as converted:
        dataset = parse(converted, EXPLICIT_VR_LITTLE_ENDIAN)
    assert (dataset.pixel_array == dcmread(out).pixel_array).all()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"])
@pytest.mark.parametrize("target", TARGETS)
def test_reencoding_keeps_text_byte_for_byte(name, target):
    """A name in bytes that its declared character set does not hold is carried over as it is."""
    raw, source, original = raw_test_file(name)
    name_bytes = str(original.PatientName).encode()
    strange = b"\x83\x84\xff\xfe"[: len(name_bytes)] + name_bytes[4:]
    changed = raw.replace(name_bytes, strange)
    assert changed != raw
    assert strange in reencode(changed, source, target)


def test_reencoding_there_and_back_gives_the_same_elements():
    raw, source, _ = raw_test_file("rtplan.dcm")
    assert source == IMPLICIT_VR_LITTLE_ENDIAN
    explicit = reencode(raw, source, EXPLICIT_VR_LITTLE_ENDIAN)
    back = reencode(explicit, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
    assert parse(back, IMPLICIT_VR_LITTLE_ENDIAN) == parse(raw, source)


def test_reencoding_has_a_limit_of_depth():
    raw = b""
    for _ in range(60):
        item = b"\xfe\xff\x00\xe0" + len(raw).to_bytes(4, "little") + raw
        raw = b"\x08\x00\x15\x11" + len(item).to_bytes(4, "little") + item
    with pytest.raises(DatasetNotUnderstood):
        reencode(raw, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)


def test_transcoder_refuses_what_can_not_be_decoded_and_goes_on(transcoder):
    raw, source, _ = raw_test_file("MR_small_jp2klossless.dcm")
    start = raw.index(b"\xff\x4f\xff\x51")
    broken = raw[:start] + bytes(800) + raw[start + 800 :]
    for nonsense in (broken, raw[: start + 90], b"\0" * 4000, b""):
        with (
            pytest.raises(DatasetNotUnderstood),
            transcoder.converted(memoryview(nonsense), source, EXPLICIT_VR_LITTLE_ENDIAN),
        ):
            pass
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN) as converted:
        assert len(converted) > len(raw)


def test_transcoder_survives_a_worker_that_is_killed(monkeypatch):
    """The instance in hand fails, the next gets a new worker."""
    transcoder = Transcoder()
    raw, source, _ = raw_test_file("examples_ybr_color.dcm")
    started = threading.Event()
    run = transcode._Worker.run

    def run_and_tell(worker, *arguments):
        killer = threading.Thread(target=kill, args=(worker.process.pid,))
        killer.start()
        try:
            return run(worker, *arguments)
        finally:
            killer.join()

    def kill(pid):
        os.kill(pid, signal.SIGSTOP)
        started.set()
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(transcode._Worker, "run", run_and_tell)
    with (
        pytest.raises(DatasetNotUnderstood),
        transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN),
    ):
        pass
    assert started.is_set()
    monkeypatch.setattr(transcode._Worker, "run", run)
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN) as converted:
        assert len(converted) > len(raw)
    transcoder.close_idle()


def test_transcoder_kills_a_worker_that_takes_too_long(monkeypatch):
    transcoder = Transcoder(instance_max_s=0.3)
    raw, source, _ = raw_test_file("MR_small_RLE.dcm")
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN):
        pass
    (worker,) = transcoder._idle
    os.kill(worker.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with (
        pytest.raises(LimitExceeded),
        transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN),
    ):
        pass
    assert time.monotonic() - began < 5
    assert worker.process.poll() == -signal.SIGKILL
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN):
        pass
    transcoder.close_idle()


def test_transcoder_replaces_a_worker_that_died_while_idle(transcoder):
    raw, source, _ = raw_test_file("MR_small_RLE.dcm")
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN):
        pass
    for worker in transcoder._idle:
        worker.process.kill()
        worker.process.wait()
    with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN):
        pass


def test_transcoder_serves_several_threads(transcoder):
    raw, source, original = raw_test_file("MR_small_RLE.dcm")
    results = []

    def convert():
        for _ in range(5):
            with transcoder.converted(memoryview(raw), source, EXPLICIT_VR_LITTLE_ENDIAN) as view:
                pixels = parse(view, EXPLICIT_VR_LITTLE_ENDIAN).pixel_array
                results.append((pixels == original.pixel_array).all())

    threads = [threading.Thread(target=convert) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 25
    assert len(transcoder._idle) <= transcode.WORKERS_MAX


def test_transcoder_refuses_a_dataset_past_its_limit(transcoder, monkeypatch):
    monkeypatch.setattr(transcode, "DATASET_MAX_BYTES", 100)
    with (
        pytest.raises(LimitExceeded),
        transcoder.converted(memoryview(bytes(101)), "1.2", EXPLICIT_VR_LITTLE_ENDIAN),
    ):
        pass


def test_transcoding_worker_ends_with_its_parent(transcoder):
    worker = transcode._Worker()
    worker.channel.close()
    wait_for(lambda: worker.process.poll() is not None)
    assert worker.process.returncode == 0


PROBE = """
import json, os, resource, socket, sys
from appliance.pixels import confinement
network = confinement.drop_network_and_privileges()
confinement.limit_resources()
files = confinement.close_file_system()
def fails(call):
    try:
        call()
    except OSError as error:
        return type(error).__name__
    return None
sys.stdout.write(json.dumps({
    "network": network, "files": files,
    "connect": fails(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)),
    "read": fails(lambda: os.open("/etc/hostname", os.O_RDONLY)),
    "write": fails(lambda: os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)),
    "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
}))
"""


def test_confinement_takes_network_files_and_memory_away(tmp_path):
    """Each right that the kernel lets go is really gone; the limits hold in any case."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(listener.getsockname()[1]), str(tmp_path / "new")],
            capture_output=True, check=True, timeout=30, env=transcode._environment(),
        )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["memory"] == 2 * 1024**3
    assert found["core"] == 0
    if found["network"]:
        assert found["connect"]
    if found["files"]:
        assert found["read"] == found["write"] == "PermissionError"
        assert not (tmp_path / "new").exists()


def test_transcoding_worker_says_what_it_gave_up(transcoder):
    """On this machine's kernel the answer is the same as the probe's."""
    worker = transcode._Worker()
    try:
        assert worker.ready.failure == ""
        assert isinstance(worker.ready.network_dropped, bool)
    finally:
        worker.kill()


def test_transcoding_worker_that_gets_no_job_ends_by_itself():
    """An idle worker gives its memory back; no parent needs to tell it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = "from appliance.pixels.transcode_worker import main; raise SystemExit(main(0.1))"
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=theirs.fileno(), env=transcode._environment()
        )
        assert process.wait(30) == 0

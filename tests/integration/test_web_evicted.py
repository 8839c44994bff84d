"""DICOMweb of a study that is no longer on the disk, on a whole node with a real bucket."""

import hashlib
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid

from tests.support.dimse import small_ct, write_part10
from tests.support.shared_node import SharedNode
from tests.support.web_client import AS_STORED, WebClient, dataset_of_part

COUNT = 5


def test_an_evicted_study_is_served_from_the_bucket(shared: SharedNode, tmp_path: Path) -> None:
    """The same metadata and ETag as before, and nothing recalled by it; then pixels and all."""
    client, node = WebClient(shared.node), shared.node
    study, series = generate_uid(), generate_uid()
    datasets = {}
    for number in range(COUNT):
        dataset, _ = small_ct(StudyInstanceUID=study, SeriesInstanceUID=series)
        write_part10(dataset, str(tmp_path / f"{number}.dcm"))
        datasets[str(dataset.SOPInstanceUID)] = tmp_path / f"{number}.dcm"
    node.dcmtk("storescu", *map(str, datasets.values()))
    before = client.get(f"studies/{study}/metadata")
    etag = before.headers["ETag"]
    assert len(before.json()) == COUNT
    expected = digests(client, study)
    assert expected.keys() == datasets.keys()
    node.drain()
    node.azekura("study", "evict", study)

    def states() -> set[str]:
        return {each["state"] for each in node.json("study", "show", study)["instances"]}

    assert states() == {"evicted"}
    (row,) = client.json(f"studies?StudyInstanceUID={study}")
    assert row["00080056"]["Value"] == ["NEARLINE"]
    after = client.get(f"studies/{study}/metadata")
    assert after.json() == before.json()
    assert after.headers["ETag"] == etag
    headers = {"If-None-Match": etag}
    assert client.session.get(after.url, headers=headers, timeout=90).status_code == 304
    assert states() == {"evicted"}
    uid = next(iter(datasets))
    frame = client.get(f"studies/{study}/series/{series}/instances/{uid}/frames/1", "*/*")
    ((_, pixels),) = client.parts(
        f"studies/{study}/series/{series}/instances/{uid}/frames/1", "multipart/related"
    )
    assert frame.status_code == 200
    assert pixels == pydicom.dcmread(datasets[uid]).PixelData
    assert digests(client, study) == expected


def digests(client: WebClient, study: str) -> dict[str, bytes]:
    """Return the sha256 of each dataset that a retrieve of the study gives."""
    found = {}
    for part, body in client.parts(f"studies/{study}", AS_STORED):
        uid = part["Content-Location"].rpartition("/")[2]
        found[uid] = hashlib.sha256(dataset_of_part(body)).digest()
    return found

"""QIDO-RS of a whole node: what it finds is what C-FIND finds, and who may ask."""

import ssl
import time

import pytest
import requests
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.support.dimse import small_ct, write_part10
from tests.support.shared_node import SharedNode
from tests.support.web_client import WebClient


class Study:
    """A study of two series with three instances, stored under UIDs of its own."""

    def __init__(self, shared: SharedNode, folder) -> None:
        self.uid = generate_uid()
        self.series = [generate_uid(), generate_uid()]
        self.instances: list[Dataset] = []
        files = []
        for number in range(3):
            dataset, _ = small_ct(
                StudyInstanceUID=self.uid, SeriesInstanceUID=self.series[number % 2],
                SOPInstanceUID=generate_uid(), PatientID=self.uid[-12:],
                PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
                SpecificCharacterSet="\\ISO 2022 IR 87", InstanceNumber=number + 1,
                StudyDate="20240229", AccessionNumber=self.uid[-10:],
            )  # fmt: skip
            self.instances.append(dataset)
            path = folder / f"{number}.dcm"
            write_part10(dataset, str(path))
            files.append(str(path))
        shared.node.dcmtk("storescu", *files)


@pytest.fixture(scope="module")
def study(shared: SharedNode, tmp_path_factory) -> Study:
    return Study(shared, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def client(shared: SharedNode) -> WebClient:
    return WebClient(shared.node)


def values(row: dict, keyword_tag: str) -> list:
    return row[keyword_tag].get("Value", [])


def test_a_study_is_found_by_every_kind_of_key(study: Study, client: WebClient) -> None:
    """Name in kanji and by wildcard, date range, UID list, accession number; counts are right."""
    for query in (
        f"StudyInstanceUID={study.uid}",
        f"0020000D={study.uid},1.2.3",
        f"AccessionNumber={study.uid[-10:]}&StudyDate=20240228-20240301",
        f"PatientID={study.uid[-12:]}&PatientName=yamada*",
        f"PatientID={study.uid[-12:]}&PatientName=*山田*",
        f"PatientID={study.uid[-12:]}&ModalitiesInStudy=CT",
    ):
        (row,) = client.json(f"studies?{query}")
        assert values(row, "0020000D") == [study.uid], query
        assert values(row, "00201208") == [3]
        assert values(row, "00201206") == [2]
        assert values(row, "00080056") == ["ONLINE"]
        assert values(row, "00080005") == ["ISO_IR 192"]
        assert values(row, "00100010") == [
            {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
        ]
        assert values(row, "00081190") == [f"{client.base}/dicom-web/studies/{study.uid}"]


def test_every_level_is_searched_under_every_path(study: Study, client: WebClient) -> None:
    """Series and instances below their study, below their series, and by keys alone."""
    series = {values(row, "0020000E")[0]: row for row in client.json(f"studies/{study.uid}/series")}
    assert sorted(series) == sorted(study.series)
    assert values(series[study.series[0]], "00201209") == [2]
    assert "00100010" not in series[study.series[0]]
    relational = client.json(f"series?StudyInstanceUID={study.uid}")
    assert len(relational) == 2
    assert "00100010" in relational[0]
    for path, count in (
        (f"studies/{study.uid}/instances", 3),
        (f"studies/{study.uid}/series/{study.series[0]}/instances", 2),
        (f"series/{study.series[1]}/instances", 1),
        (f"instances?StudyInstanceUID={study.uid}&InstanceNumber=2", 1),
    ):
        rows = client.json(path)
        assert len(rows) == count, path
        wanted = {str(each.SOPInstanceUID) for each in study.instances}
        assert {values(row, "00080018")[0] for row in rows} <= wanted


def test_paging_and_included_fields(study: Study, client: WebClient) -> None:
    """Pages are disjoint and whole, the end is announced, and `all` answers what the index has."""
    path = f"studies/{study.uid}/instances"
    pages = [client.get(f"{path}?limit=1&offset={offset}") for offset in range(4)]
    assert [page.status_code for page in pages] == [200, 200, 200, 204]
    assert len({values(page.json()[0], "00080018")[0] for page in pages[:3]}) == 3
    assert ["additional results" in page.headers.get("Warning", "") for page in pages] == [
        True, True, False, False,
    ]  # fmt: skip
    (row,) = client.json(f"studies?StudyInstanceUID={study.uid}&includefield=00201200")
    assert values(row, "00201200") == [1]
    some = client.json(f"{path}?limit=1")[0]
    every = client.json(f"{path}?limit=1&includefield=all")[0]
    assert set(some) < set(every)
    assert "00083002" in every


def test_what_is_not_supported_is_said(study: Study, client: WebClient) -> None:
    """Fuzzy matching and keys that are not matched give warnings; nonsense is refused."""
    answer = client.get(f"studies?StudyInstanceUID={study.uid}&fuzzymatching=true")
    assert answer.status_code == 200
    assert "fuzzymatching" in answer.headers["Warning"]
    answer = client.get(f"studies?StudyInstanceUID={study.uid}&PatientWeight=70&KVP=120")
    assert "KVP" in answer.headers["Warning"]
    for query in ("limit=-1", "offset=x", "NoSuchKeyword=1", "fuzzymatching=maybe"):
        assert client.get(f"studies?{query}").status_code == 400, query
    assert client.get(f"studies/{study.uid}%2F..%2F..").status_code in (400, 404)
    assert client.get("studies/..%2f..%2fetc/series").status_code in (400, 404)
    assert client.get("studies", accept="text/html").status_code == 406
    assert client.get("studies?StudyDate=" + "1" * 40_000).status_code in (400, 414)


def test_nobody_asks_without_a_right(shared: SharedNode, study: Study, client: WebClient) -> None:
    """No token, a wrong one, one without the right, a revoked one: nothing is answered."""
    stranger = WebClient(shared.node, token="azk_" + "0" * 43)
    assert stranger.get("studies").status_code == 401
    del stranger.session.headers["Authorization"]
    assert stranger.get("studies").status_code == 401
    assert stranger.get("/metrics").status_code == 401
    assert stranger.get("/health").json() == {"status": "ok"}
    assert WebClient(shared.node, "store").get("studies").status_code == 403
    leaving = WebClient(shared.node, "read")
    assert leaving.get(f"studies?StudyInstanceUID={study.uid}").status_code == 200
    shared.node.azekura("token", "revoke", leaving.name)
    end_s = time.monotonic() + 60
    while leaving.get("studies?limit=1").status_code != 401:
        assert time.monotonic() < end_s
    kept = (shared.node.data / "state" / "tokens.json").read_text()
    assert client.token not in kept
    assert client.name in kept


def test_a_client_certificate_is_its_peer(shared: SharedNode, client: WebClient) -> None:
    """It may do what its peer may; another authority's certificate gets no connection."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(client.authority)
    session.cert = (shared.peer_tls.certificate, shared.peer_tls.key)
    url = f"{client.base}/dicom-web/studies"
    assert session.get(url, timeout=60).status_code == 403  # its peer may store only
    session = requests.Session()
    session.trust_env = False
    session.verify = str(client.authority)
    session.cert = (shared.stranger_tls.certificate, shared.stranger_tls.key)
    with pytest.raises((requests.exceptions.SSLError, requests.exceptions.ConnectionError)):
        session.get(url, timeout=60)


def test_only_modern_tls_and_the_right_headers(shared: SharedNode, client: WebClient) -> None:
    """TLS 1.2 at least; no plain HTTP; security headers on every kind of answer."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    import socket
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", shared.node.web_port), 60) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(sock)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"http://127.0.0.1:{shared.node.web_port}/health", timeout=60)
    for path in ("/health", "/nothing", "studies", "studies?limit=x"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "Azekura"


def test_metrics_are_the_status(shared: SharedNode, client: WebClient) -> None:
    """Prometheus gets the figures of `azekura status`."""
    text = client.get("/metrics").text
    studies = next(line for line in text.splitlines() if line.startswith("azekura_studies "))
    assert float(studies.split()[1]) == shared.node.status()["studies"]


def test_doctor_asks_the_web_port(shared: SharedNode) -> None:
    """A line that says that it answers, and until when the certificate holds."""
    found = shared.node.json("doctor", check=False)
    (line,) = [each for each in found if each["condition"] == "web_port"]
    assert line["severity"] == "ok"
    assert "over TLS" in line["sentence"]


def test_no_access_names_a_patient_or_a_study(
    shared: SharedNode, study: Study, client: WebClient
) -> None:
    """Who asked what kind of thing is logged, and nothing of the question."""
    client.get(f"studies?StudyInstanceUID={study.uid}&PatientName=Yamada*")
    log = shared.node.log("web")
    assert f'"caller": "{client.name}"' in log
    assert study.uid not in log
    assert "Yamada" not in log
    assert client.token not in log

"""A real Orthanc beside the node: as SCU that queries, retrieves and asks for commitment."""

import contextlib
import json
import pathlib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.services import free_port, wait_for


@dataclass
class Orthanc:
    url: str
    dicom_port: int
    aet: str = "ORTHANC"

    def get(self, path: str):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def delete(self, path: str) -> None:
        request = urllib.request.Request(f"{self.url}{path}", method="DELETE")
        with urllib.request.urlopen(request, timeout=60):
            pass

    def answers(self) -> bool:
        try:
            self.get("/system")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True


@contextlib.contextmanager
def orthanc(directory: pathlib.Path, dicom_port: int, node_ae: str, node_port: int) -> Iterator:
    http_port = free_port()
    configuration = directory / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "Name": "test",
                "StorageDirectory": str(directory / "orthanc"),
                "IndexDirectory": str(directory / "orthanc"),
                "HttpPort": http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomAet": "ORTHANC",
                "DicomPort": dicom_port,
                "DicomAlwaysAllowStore": True,
                "DicomCheckModalityHost": False,
                "DicomModalities": {
                    "node": {
                        "AET": node_ae,
                        "Host": "127.0.0.1",
                        "Port": node_port,
                        "AllowStorageCommitment": True,
                        "AllowNEventReport": True,
                    }
                },
                "Plugins": [],
            }
        )
    )
    process = subprocess.Popen(
        ["Orthanc", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        running = Orthanc(f"http://127.0.0.1:{http_port}", dicom_port)
        wait_for(running.answers, 60)
        yield running
    finally:
        process.terminate()
        process.wait(20)

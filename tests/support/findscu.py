"""C-FIND by DCMTK: query files made by dump2dcm of raw bytes, answers read by pydicom."""

import itertools
import warnings
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from tests.support.node import Node, run_tool

_numbers = itertools.count(1)


def find_by_file(
    node: Node,
    folder: Path,
    keys: dict[str, bytes],
    *,
    level: str = "STUDY",
    calling_ae: str = "FINDSCU",
    patient_root: bool = False,
) -> list[Dataset]:
    """Ask with a query file of these elements, "gggg,eeee VR" → raw value; return the answers."""
    own = folder / f"query-{next(_numbers)}"
    own.mkdir()
    lines = [f"(0008,0052) CS [{level}]\n".encode()]
    for element, value in keys.items():
        tag, _, vr = element.partition(" ")
        shown = b"[" + value + b"]" if value else b"(no value available)"
        lines.append(f"({tag}) {vr} ".encode() + shown + b"\n")
    (own / "query.dump").write_bytes(b"".join(lines))
    run_tool(["/usr/bin/dump2dcm", "-q", str(own / "query.dump"), str(own / "query.dcm")])
    run_tool([
        "/usr/bin/findscu", "-P" if patient_root else "-S", "-X", "-od", str(own),
        "-aet", calling_ae, "-aec", "AZEKURA", "127.0.0.1", str(node.port), str(own / "query.dcm"),
    ])  # fmt: skip
    return [read_answer(path) for path in sorted(own.glob("rsp*.dcm"))]


def read_answer(path: Path) -> Dataset:
    """Read an answer with every text decoded; a warning of pydicom about it is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = pydicom.dcmread(path)
        answer.decode()
        str(answer)
    return answer

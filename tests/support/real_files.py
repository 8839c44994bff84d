"""The real DICOM files at hand: those that pydicom and its data package bring, nothing fetched.

`pydicom.data.get_testdata_files` would try to download what it misses, for minutes where there is
no line.
"""

from pathlib import Path

import data_store
import pydicom.data


def files_of_pydicom() -> list[Path]:
    """Return every file of pydicom's test data and of its data package, in a fixed order."""
    root = Path(pydicom.data.__file__).parent
    folders = (
        root / "test_files",
        root / "charset_files",
        Path(data_store.__file__).parent / "data",
    )
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())

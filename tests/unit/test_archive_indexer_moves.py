"""The indexer misses no pack that moves on while it looks away, or while it looks."""

import os
from pathlib import Path

import pytest

from appliance.archive.indexer import Indexer
from appliance.archive.layout import Layout
from appliance.archive.requests import RequestBox
from appliance.foundation.clock import SystemClock
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.packs.sealing import seal
from tests.support.pack_samples import PACK_ID, STUDY, closed_pack


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path / "data"))
    layout.create(FileSystem())
    return layout


@pytest.fixture
def index(layout: Layout):
    index = Index(FileSystem(), layout.index).open()
    yield index
    index.close()


def _indexer(layout: Layout, index: Index) -> Indexer:
    return Indexer(
        SystemClock(), layout, index, "site-a", RequestBox(FileSystem(), layout.requests)
    )


def _seal(layout: Layout, count: int = 3) -> None:
    path = closed_pack(Path(layout.closed), count)
    seal(FileSystem(), path)
    os.rename(path, layout.sealed_path(PACK_ID))


def _known(index: Index) -> int:
    with index.read() as view:
        return len(list(view.instances(STUDY)))


def _is_local(index: Index) -> bool:
    with index.read() as view:
        row = view.pack(PACK_ID)
    return row is not None and row.local


def test_indexer_takes_a_pack_that_it_first_sees_sealed(layout: Layout, index: Index) -> None:
    """From open to sealed between two looks, as a large instance or a busy index makes it."""
    indexer = _indexer(layout, index)
    indexer.catch_up()
    _seal(layout)
    assert indexer.run_once() == 3
    assert _known(index) == 3
    assert _is_local(index)


def test_indexer_takes_a_pack_that_is_sealed_while_it_lists(
    layout: Layout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not yet in `sealed` when that is listed first, no longer in `closed` afterwards."""
    listed = []

    def sealing_meanwhile(directory: str) -> list[str]:
        found = sorted(name[:-4] for name in os.listdir(directory) if name.endswith(".tar"))
        if not listed:
            listed.append(directory)
            _seal(layout)
        return found

    monkeypatch.setattr("appliance.archive.indexer.packs_in", sealing_meanwhile)
    indexer = _indexer(layout, index)
    indexer.catch_up()
    assert listed
    assert _known(index) == 3
    assert _is_local(index)


def test_indexer_looks_at_sealed_packs_only_when_they_change(
    layout: Layout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tens of thousands of names are not listed four times a second."""
    _seal(layout)
    os.utime(layout.sealed, ns=(10**18, 10**18))
    indexer = _indexer(layout, index)
    indexer.catch_up()
    directories = []
    monkeypatch.setattr(
        "appliance.archive.indexer.packs_in", lambda each: directories.append(each) or []
    )
    indexer.run_once()
    assert layout.closed in directories
    assert layout.sealed not in directories

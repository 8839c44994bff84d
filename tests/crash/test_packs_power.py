"""Power cuts and failing disks at every operation of writing, sealing and recovering a pack."""

import shutil
from pathlib import Path

import pytest

from appliance.foundation.errors import AzekuraError, Damaged, OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.packs.member import Member
from appliance.packs.reader import PackReader
from appliance.packs.recovery import recover
from appliance.packs.sealing import seal
from appliance.packs.writer import PackWriter, StreamedMember
from tests.support import pack_samples as samples

OPERATIONS_MAX = 60
SEEDS = range(6)


def write_pack(files: FileSystem, path: str, promised: list[Member]) -> None:
    """Store five instances, the last two in one flush; `promised` is what Success was said of."""
    writer = PackWriter(files, path, samples.STUDY)
    for number in range(3):
        member = samples.append(writer, number)
        writer.sync()
        promised.append(member)
    late = [samples.append(writer, 3), samples.append(writer, 4, b"z" * 1_200_000)]
    writer.sync()
    promised += late
    writer.close()


def stream_pack(files: FileSystem, path: str, promised: list[Member]) -> None:
    stream = StreamedMember(files, path)
    stream.begin(samples.file_meta("1.2.3"))
    for number in range(3):
        stream.write(samples.dataset(number, 30_000))
    promised.append(
        stream.finish("1.2/1.2.3.dcm", samples.provenance(), samples.EXPLICIT, samples.CT_STORAGE)
    )


def count_of(work) -> int:
    files = samples.ForgetfulFiles()
    work(files)
    assert 0 < files.count < OPERATIONS_MAX
    return files.count


@pytest.mark.parametrize("work", [write_pack, stream_pack])
def test_a_power_cut_at_any_operation_keeps_what_was_promised(tmp_path: Path, work):
    """P1 and P2: what was answered is there, and nothing is visible half-written."""
    (tmp_path / "count").mkdir()
    total = count_of(lambda files: work(files, samples.pack_path(tmp_path / "count"), []))
    for at in range(1, total + 1):
        for seed in SEEDS:
            folder = tmp_path / f"{at}-{seed}"
            folder.mkdir()
            path = samples.pack_path(folder)
            promised: list[Member] = []
            files = samples.ForgetfulFiles(at)
            with pytest.raises(samples.PowerCut):
                work(files, path, promised)
            files.cut_power(seed)
            if not Path(path).exists():
                assert promised == []
                continue
            recovered = recover(FileSystem(), path, str(folder / "aside"))
            assert recovered.members[: len(promised)] == promised
            if recovered.members:
                with PackReader(path) as reader:
                    assert list(reader.members()) == recovered.members
                    assert all(map(reader.verify, recovered.members))


def test_a_power_cut_at_any_operation_of_sealing_is_repaired_by_sealing_again(tmp_path: Path):
    """The sealed pack is the same, byte for byte, whatever came between."""
    path = samples.closed_pack(tmp_path, 5)
    clean = samples.copy_pack(path, tmp_path / "clean")
    total = count_of(lambda files: seal(files, clean))
    expected = Path(clean).read_bytes()
    for at in range(1, total + 1):
        for seed in SEEDS:
            copy = samples.copy_pack(path, tmp_path / f"{at}-{seed}")
            files = samples.ForgetfulFiles(at)
            with pytest.raises(samples.PowerCut):
                seal(files, copy)
            files.cut_power(seed)
            seal(FileSystem(), copy)
            assert Path(copy).read_bytes() == expected
            shutil.rmtree(tmp_path / f"{at}-{seed}")


def test_a_power_cut_behind_sealing_or_recovery_forgets_nothing(tmp_path: Path):
    """What they return is on the medium: the next step, a rename or a PUT, builds on it."""
    closed = samples.closed_pack(tmp_path, 5)
    (tmp_path / "d").mkdir()
    damaged = damaged_pack(tmp_path / "d")
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        sealed = samples.copy_pack(closed, folder / "sealed")
        files = samples.ForgetfulFiles()
        seal(files, sealed)
        recovered = samples.copy_pack(damaged, folder / "recovered")
        recover(files, recovered, str(folder / "aside"))
        expected = [Path(path).read_bytes() for path in (sealed, recovered)]
        files.cut_power(seed)
        assert [Path(path).read_bytes() for path in (sealed, recovered)] == expected


def damaged_pack(folder: Path) -> str:
    """Return a pack with a bad dataset, a bad header and a torn tail."""
    path = samples.closed_pack(folder, 7)
    with PackReader(path) as reader:
        members = list(reader.members())
    with open(path, "r+b") as file:
        for offset in (members[1].dataset_offset, members[3].header_offset + 5):
            file.seek(offset)
            file.write(b"\xff\xfe")
        file.truncate(members[6].dataset_offset + 900)
    return path


def test_a_power_cut_at_any_operation_of_recovery_is_repaired_by_recovery(tmp_path: Path):
    """Recovery may itself be cut short, again and again."""
    path = damaged_pack(tmp_path)
    clean = samples.copy_pack(path, tmp_path / "clean")
    members = recover(FileSystem(), clean, str(tmp_path / "clean-aside")).members
    assert len(members) == 4
    expected = Path(clean).read_bytes()
    copies = {file.name: file.read_bytes() for file in (tmp_path / "clean-aside").iterdir()}
    total = count_of(
        lambda files: recover(files, samples.copy_pack(path, tmp_path / "n"), str(tmp_path / "m"))
    )
    for at in range(1, total + 1):
        for seed in SEEDS:
            folder = tmp_path / f"{at}-{seed}"
            copy = samples.copy_pack(path, folder)
            files = samples.ForgetfulFiles(at)
            with pytest.raises(samples.PowerCut):
                recover(files, copy, str(folder / "aside"))
            files.cut_power(seed)
            assert recover(FileSystem(), copy, str(folder / "aside")).members == members
            assert Path(copy).read_bytes() == expected
            aside = {f.name: f.read_bytes() for f in (folder / "aside").iterdir()}
            assert {name: aside.get(name) for name in copies} == copies


@pytest.mark.parametrize("fail", [samples.full_disk, samples.broken_disk])
@pytest.mark.parametrize("work", [write_pack, stream_pack])
def test_a_failure_of_any_operation_is_raised_and_loses_nothing(tmp_path: Path, work, fail):
    """Faults 7 and 16: an operation that fails is told, and what was promised stays."""
    (tmp_path / "count").mkdir()
    total = count_of(lambda files: work(files, samples.pack_path(tmp_path / "count"), []))
    raised = 0
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        path = samples.pack_path(folder)
        promised: list[Member] = []
        files = samples.FailingFiles(at, fail)
        try:
            work(files, path, promised)
        except (OutOfSpace, StorageFailed):
            raised += 1
        if not Path(path).exists():
            assert promised == []
            continue
        recovered = recover(FileSystem(), path, str(folder / "aside"))
        assert recovered.members[: len(promised)] == promised
    # A reservation that finds no space may be made good by the write behind it; nothing else may.
    preallocations = files.calls.count("preallocate")
    assert raised >= total - preallocations
    assert raised == total or fail is samples.full_disk


@pytest.mark.parametrize("fail", [samples.full_disk, samples.broken_disk])
def test_a_failure_of_any_operation_of_sealing_changes_no_instance(tmp_path: Path, fail):
    """A pack that could not be sealed is sealed later."""
    path = samples.closed_pack(tmp_path, 5)
    clean = samples.copy_pack(path, tmp_path / "clean")
    total = count_of(lambda files: seal(files, clean))
    for at in range(1, total + 1):
        copy = samples.copy_pack(path, tmp_path / str(at))
        with pytest.raises(AzekuraError) as caught:
            seal(samples.FailingFiles(at, fail), copy)
        assert not isinstance(caught.value, Damaged)
        seal(FileSystem(), copy)
        assert Path(copy).read_bytes() == Path(clean).read_bytes()

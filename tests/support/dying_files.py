"""File layers that end the process at the N-th operation, with or without what was not flushed.

A step is an operation on a durable file, in front of it and in the middle of a write; a commit of
the index, in front and behind. A write is torn where the kernel may tear it: between two sectors,
never inside one.
"""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.foundation.files import FileSystem
from appliance.index.environment import Environment
from tests.support.pack_samples import SECTOR_BYTES, PowerCut, survivors


class Steps:
    """Counts steps; at the chosen one the process is gone, after `last_act`."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._guard = threading.Lock()
        self.count = 0
        # What the end leaves of the disk: nothing is changed unless a power cut says so.
        self.last_act: Callable[[], object] = int

    def step(self, before_end: Callable[[], object] | None = None) -> None:
        with self._guard:
            self.count += 1
            if self.count != self._at:
                return
            if before_end is not None:
                before_end()
            self.last_act()
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Steps):
    """Steps of a life inside this process: the end is a PowerCut on the thread that lives it.

    Whatever that thread still tries to do to the disk on its way out meets the same end. Other
    threads are let go on; `alive` is to see to it that there are none.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self._thread = threading.current_thread()
        self._paused = 0
        self.dead = False

    def arm(self, steps: int, last_act: Callable[[], object] = int) -> None:
        """Let the life end at that many steps from now; 0 for never."""
        self._at = self.count + steps if steps else 0
        self.last_act = last_act

    def revive(self) -> None:
        """Begin the next life, unarmed."""
        self.dead = False
        self._at = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing over the block."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def step(self, before_end: Callable[[], object] | None = None) -> None:
        if self._paused or threading.current_thread() is not self._thread:
            return
        if self.dead:
            raise PowerCut
        self.count += 1
        if self.count == self._at:
            if before_end is not None:
                before_end()
            self.last_act()
            self.dead = True
            raise PowerCut


class DyingFiles(FileSystem):
    """The operations on durable files, each a step; a write is two: in front and in the middle."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def pwritev(self, fd, buffers, offset):
        self._steps.step()
        content = b"".join(bytes(each) for each in buffers)
        middle = (offset + len(content) // 2) // SECTOR_BYTES * SECTOR_BYTES - offset
        self._steps.step(lambda: middle > 0 and os.pwrite(fd, content[:middle], offset))
        return super().pwritev(fd, buffers, offset)

    def write_volatile(self, path, content):
        self._steps.step()
        super().write_volatile(path, content)


def _stepped(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def operation(self, *arguments, **named):
        self._steps.step()
        return real(self, *arguments, **named)

    return operation


for _name in ("open", "preallocate", "truncate", "fdatasync", "fsync_directory"):
    setattr(DyingFiles, _name, _stepped(_name))


class DyingRenames(DyingFiles):
    """Also between a rename or unlink and the flush of its directory."""

    def rename(self, source, target):
        self._steps.step()
        super().rename(source, target)

    def unlink(self, path):
        self._steps.step()
        super().unlink(path)


class PowerFiles(DyingFiles):
    """Remembers what of files and directories was flushed, and at the end forgets the rest.

    Of the bytes of a file any sectors that were not flushed may be there; of the directory entries
    the oldest changes up to any. What is in the index's files is LMDB's own affair: it flushes at
    each commit. Whether a new generation's files are in their directory is ours.
    """

    def __init__(self, steps: Steps, folder: Path, seed: int) -> None:
        super().__init__(steps)
        self._draw = random.Random(seed)
        self._folder = folder
        self._stash = folder / f"stash-{seed}"
        self._stash.mkdir()
        # By inode: what of a file is on the medium.
        self._flushed: dict[int, bytes] = {}
        self._changes: list[tuple[str, Callable[[], object]]] = []
        self._new_directories: set[str] = set()
        steps.last_act = self.cut

    def open(self, path, flags, mode=0o660):
        known = os.path.isfile(path)
        if known:
            self._flushed.setdefault(os.stat(path).st_ino, Path(path).read_bytes())
        fd = super().open(path, flags, mode)
        if not known and not os.path.isdir(path):
            self._flushed[os.fstat(fd).st_ino] = b""
            # One that was renamed since has no entry here any more.
            self._changes.append(
                (os.path.dirname(path), lambda: Path(path).unlink(missing_ok=True))
            )
        return fd

    def fdatasync(self, fd):
        super().fdatasync(fd)
        self._flushed[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def make_directory(self, path):
        if not os.path.isdir(path):
            self._new_directories.add(path)
        super().make_directory(path)

    def fsync_directory(self, path):
        super().fsync_directory(path)
        self._changes = [each for each in self._changes if each[0] != path]
        self._new_directories.discard(path)

    def rename(self, source, target):
        self._steps.step()
        kept = self._keep(target)

        def undo() -> None:
            if not os.path.exists(source):
                os.rename(target, source)
                if kept is not None:
                    os.rename(kept, target)

        self._changes.append((os.path.dirname(target), undo))
        super().rename(source, target)

    def unlink(self, path):
        self._steps.step()
        kept = self._keep(path)
        if kept is not None:

            def undo() -> None:
                if not os.path.exists(path):
                    os.rename(kept, path)

            self._changes.append((os.path.dirname(path), undo))
        super().unlink(path)

    def _keep(self, path: str) -> str | None:
        """Keep a file that loses its name; None when there is none."""
        if not os.path.exists(path):
            return None
        kept = str(self._stash / f"{len(os.listdir(self._stash))}")
        os.link(path, kept)
        return kept

    def reseed(self, seed: int) -> None:
        """Choose what the cut leaves."""
        self._draw = random.Random(seed)

    def cut(self) -> None:
        """Leave what a power cut may leave."""
        for directory in sorted(self._new_directories):
            if Path(directory).parent.name == "index" and self._draw.random() < 0.5:
                for path in Path(directory).glob("*.mdb"):
                    path.unlink()
        lost = self._draw.randint(0, len(self._changes))
        for _, undo in reversed(self._changes[len(self._changes) - lost :]):
            undo()
        for path in (self._folder / "data").rglob("*"):
            if not path.is_file() or path.is_relative_to(self._folder / "data" / "index"):
                continue
            flushed = self._flushed.get(path.stat().st_ino)
            written = path.read_bytes()
            if flushed is not None and flushed != written:
                # Another inode: who still maps the old one must not meet its end.
                left = self._stash / "left"
                left.write_bytes(survivors(self._draw, flushed, written))
                left.replace(path)


def die_around_commits(steps: Steps) -> Callable[[], None]:
    """Make each commit of the index two steps; return what undoes that."""
    real = Environment.end

    def end(self, transaction, *, commit=False):
        if commit:
            try:
                steps.step()
            except BaseException:
                real(self, transaction)
                raise
        real(self, transaction, commit=commit)
        if commit:
            steps.step()

    def undo() -> None:
        Environment.end = real

    Environment.end = end
    return undo

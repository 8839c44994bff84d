"""Bugs made on purpose: what is changed in which file, and the tests that have to notice.

Each takes one promise away. `before` stands exactly once in the file; the tests named are few, so
that a run takes minutes, and are whole files, so that it is the suite that catches and no more.
"""

from typing import NamedTuple


class Bug(NamedTuple):
    """One change, and where it should be noticed."""

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]


BUGS = (
    Bug(
        "fsync skipped",
        "appliance/packs/pack_file.py",
        "            self._files.fdatasync(self._fd)\n            if not self._entry_durable",
        "            if not self._entry_durable",
        ("tests/crash/test_packs_power.py", "tests/unit/test_archive_ingest.py"),
    ),
    Bug(
        "directory entry not flushed",
        "appliance/packs/pack_file.py",
        "                self._files.fsync_directory(os.path.dirname(self.path))\n",
        "",
        ("tests/unit/test_archive_ingest.py", "tests/unit/test_packs_writer.py"),
    ),
    Bug(
        "early Success",
        "appliance/archive/open_packs.py",
        "            pack.writer.sync()\n",
        "",
        ("tests/unit/test_archive_ingest.py", "tests/crash/test_archive_life.py"),
    ),
    Bug(
        "412 ignored",
        "appliance/archive/upload.py",
        "        except ObjectExists:\n            return self._settle(pack_id, note)\n"
        "        except (ChecksumRejected, Damaged):",
        "        except ObjectExists:\n"
        "            return self._store.oldest_version(pack_key(pack_id)).version_id, note\n"
        "        except (ChecksumRejected, Damaged):",
        ("tests/unit/test_archive_upload.py",),
    ),
    Bug(
        "ledger's 412 ignored",
        "appliance/archive/ledger.py",
        "            if self._fetch(sequence) != sealed:\n                self._refuse(sequence)\n",
        "            pass\n",
        ("tests/unit/test_archive_ledger.py",),
    ),
    Bug(
        "eviction without proof",
        "appliance/archive/evict.py",
        "        self.prove(row.cloud)\n",
        "",
        ("tests/unit/test_archive_evict.py",),
    ),
    Bug(
        "pending pack evicted",
        "appliance/archive/evict.py",
        "        if row is None or row.cloud is None:\n            raise Refused(",
        "        if row is None:\n            raise Refused(",
        ("tests/unit/test_archive_evict.py",),
    ),
    Bug(
        "ledger written before read-back",
        "appliance/archive/upload.py",
        "        problem = read_back_problem(info, note)\n",
        '        problem = ""\n',
        ("tests/unit/test_archive_upload.py",),
    ),
    Bug(
        "entry put before it is durable here",
        "appliance/archive/ledger.py",
        "        self._files.write_atomic(self._path(sequence), sealed)\n"
        "        self._last, self._last_hash = sequence, entry.header_sha256\n"
        "        self.opened = True\n"
        "        self._put(sequence, sealed)\n",
        "        self._last, self._last_hash = sequence, entry.header_sha256\n"
        "        self.opened = True\n"
        "        self._put(sequence, sealed)\n"
        "        self._files.write_atomic(self._path(sequence), sealed)\n",
        ("tests/unit/test_archive_ledger.py",),
    ),
    Bug(
        "spool encrypted anew at each try",
        "appliance/archive/upload.py",
        "            if os.path.getsize(path) == note.size_bytes:",
        "            if os.path.getsize(path) < 0:",
        ("tests/unit/test_archive_upload.py",),
    ),
    Bug(
        "chain not checked",
        "appliance/archive/ledger_entry.py",
        "    if header.previous != previous:",
        "    if header.previous != previous and False:",
        ("tests/unit/test_archive_ledger.py", "tests/unit/test_archive_replace.py"),
    ),
    Bug(
        "signature not checked",
        "appliance/archive/ledger_entry.py",
        "    if not verify(entry.signature.key, entry.header_line, entry.signature.signature):",
        "    if not entry.signature.key:",
        ("tests/unit/test_archive_ledger.py", "tests/unit/test_archive_replace.py"),
    ),
    Bug(
        "sha256 not checked at recall",
        "appliance/archive/retrieval.py",
        "    if digest != instance.sha256:",
        "    if not digest:",
        ("tests/unit/test_archive_retrieval.py", "tests/unit/test_archive_recall.py"),
    ),
    Bug(
        "failed flush forgotten",
        "appliance/archive/ingest.py",
        "            self._failure = failure\n",
        "",
        ("tests/unit/test_archive_ingest.py",),
    ),
    Bug(
        "lock dated by this box's clock",
        "appliance/archive/retention.py",
        "self._store.server_time()",
        "__import__('datetime').datetime.now(__import__('datetime').UTC)",
        ("tests/unit/test_archive_clock.py",),
    ),
    Bug(
        "pack removed before the index knows",
        "appliance/archive/evict.py",
        "            with self._index.write() as txn:\n",
        "            self._files.unlink(path)\n            with self._index.write() as txn:\n",
        ("tests/unit/test_archive_evict.py", "tests/crash/test_archive_kill.py"),
    ),
    Bug(
        "damaged member salvaged",
        "appliance/packs/recovery.py",
        "        return digest.digest() == member.sha256\n",
        "        return True\n",
        ("tests/unit/test_archive_salvage.py",),
    ),
    Bug(
        "damaged pack thrown away",
        "appliance/archive/quarantine.py",
        "        if note.pending or not note.replaced_at_us:\n",
        "        if not (note.pending or note.replaced_at_us):\n",
        ("tests/unit/test_archive_repair.py",),
    ),
    Bug(
        "the only good copy evicted",
        "appliance/archive/evict.py",
        "        if self._suspect is not None and self._suspect(pack_id):\n",
        "        if False:\n",
        ("tests/unit/test_archive_cloud_scrub.py",),
    ),
    Bug(
        "finding covered up by a replica",
        "appliance/remote/replicas.py",
        "                if only_unreachable and not isinstance(error, CloudUnavailable):\n",
        "                if False:\n",
        ("tests/unit/test_remote_replicas.py",),
    ),
    Bug(
        "dead bucket waited for each time",
        "appliance/remote/replicas.py",
        "                    copy.fell_silent()\n",
        "                    pass\n",
        ("tests/unit/test_remote_replicas.py",),
    ),
)

"""Instances whose only copy was found damaged: who sent them, so that they can be sent again.

Owns `state/damaged.json`, written by the uplink alone. An entry ends by itself when the instance is
here again: the same bytes in another pack, or any version that came later. Nothing of it goes into
a log but counts; UIDs are in the file and in what commands show.
"""

import os
import threading
from typing import Any

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.problem import Problem
from appliance.foundation import log
from appliance.foundation.clock import from_microseconds, isoformat
from appliance.foundation.errors import UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.view import View

FORMAT = 1
SENDERS_NAMED_MAX = 5
REVIEWED_MAX = 2000

_log = log.get("damaged")


class DamagedInstance(msgspec.Struct, frozen=True):
    """One instance, from where and when it came, and where its damaged copy lay.

    `sha256` in hex, of the dataset as it came; `offset` of the dataset in the plain tar.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    length: int
    sha256: str
    received_at_us: int
    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str
    pack_id: str
    offset: int
    found_at_us: int


class _Document(msgspec.Struct):
    instances: list[DamagedInstance] = []
    format: int = FORMAT


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "damaged.json")


def read_damaged(layout: Layout) -> list[DamagedInstance]:
    """Return what waits to be sent again. UnsupportedFormat for a file of a later release."""
    try:
        with open(_path(layout), "rb") as file:
            found = msgspec.json.decode(file.read(), type=_Document)
    except FileNotFoundError:
        return []
    if found.format != FORMAT:
        raise UnsupportedFormat("read", _path(layout), f"format {found.format}", "Update Azekura")
    return found.instances


def damaged_rows(layout: Layout) -> list[dict[str, Any]]:
    """Return the list as people and their programs read it, grouped by sender and study."""
    found = sorted(
        read_damaged(layout),
        key=lambda each: (each.calling_ae, each.study_instance_uid, each.received_at_us),
    )
    return [
        {
            "calling_ae": each.calling_ae,
            "called_ae": each.called_ae,
            "address": each.peer_address,
            "tls_subject": each.tls_subject,
            "received_at": isoformat(from_microseconds(each.received_at_us)),
            "study_instance_uid": each.study_instance_uid,
            "series_instance_uid": each.series_instance_uid,
            "sop_instance_uid": each.sop_instance_uid,
            "transfer_syntax_uid": each.transfer_syntax_uid,
            "length": each.length,
            "sha256": each.sha256,
            "pack": each.pack_id,
            "found_at": isoformat(from_microseconds(each.found_at_us)),
        }
        for each in found
    ]


class DamagedBook:
    """The list. Any thread; `_lock` guards it, and every change is durable before it returns."""

    def __init__(self, files: FileSystem, layout: Layout) -> None:
        self._files = files
        self._layout = layout
        self._lock = threading.Lock()
        self._instances = {(each.pack_id, each.offset): each for each in read_damaged(layout)}

    def __len__(self) -> int:
        return len(self._instances)

    def add(self, found: list[DamagedInstance]) -> int:
        """Take instances in; return how many were not there yet."""
        with self._lock:
            new = [each for each in found if (each.pack_id, each.offset) not in self._instances]
            self._instances |= {(each.pack_id, each.offset): each for each in new}
            if new:
                self._save()
        if new:
            _log.critical("only_copy_damaged", instances=len(new), senders=_senders(new))
        return len(new)

    def review(self, index: Index) -> set[str]:
        """Drop what is here again; return the packs whose members that were."""
        with self._lock:
            listed = list(self._instances.items())[:REVIEWED_MAX]
        if not listed:
            return set()
        with index.read() as view:
            done = [key for key, each in listed if _is_here_again(view, each)]
        with self._lock:
            for key in done:
                # What was looked at goes to the end: a long list is reviewed in turn.
                self._instances.pop(key, None)
            for key, each in listed:
                if key in self._instances:
                    del self._instances[key]
                    self._instances[key] = each
            if done:
                self._save()
        if done:
            _log.info("damaged_sent_again", instances=len(done))
        return {pack_id for pack_id, _ in done}

    def _save(self) -> None:
        document = _Document(list(self._instances.values()))
        self._files.write_atomic(_path(self._layout), msgspec.json.encode(document))

    def problems(self) -> list[Problem]:
        """Return the alarm while anything waits."""
        with self._lock:
            waiting = list(self._instances.values())
        if not waiting:
            return []
        sentence = (
            f"the only copy of {len(waiting)} instances is damaged; they came from "
            f"{_senders(waiting)}"
        )
        hint = "azekura study damaged lists them: have them sent again; it ends when they are here"
        return [Problem("damaged", sentence, hint)]


def _senders(instances: list[DamagedInstance]) -> str:
    names = sorted({f"{each.calling_ae} ({each.peer_address})" for each in instances})
    more = len(names) - SENDERS_NAMED_MAX
    return ", ".join(names[:SENDERS_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _is_here_again(view: View, damaged: DamagedInstance) -> bool:
    found = view.instance(damaged.study_instance_uid, damaged.sop_instance_uid)
    for version in found.versions if found is not None else ():
        for copy in version.copies:
            if copy.pack_id == damaged.pack_id:
                continue
            row = view.pack(copy.pack_id)
            good = row is not None and (row.local or row.cloud is not None)
            same = version.sha256.hex() == damaged.sha256
            if good and (same or copy.received_at_us > damaged.received_at_us):
                return True
    return False

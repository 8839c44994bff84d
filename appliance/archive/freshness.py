"""Waiting until the index has what the writers of this disk have answered (read-your-writes)."""

import time

from appliance.archive.layout import Layout
from appliance.archive.progress import Progress, progress_path

FRESH_WAIT_S = 5.0
FRESH_POLL_S = 0.002


class Freshness:
    """Compares the writers' counters with the indexer's. Any thread may wait."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._progress: dict[str, Progress] = {}

    def wait(self, timeout_s: float = FRESH_WAIT_S) -> bool:
        """Return whether the index has caught up with this moment, in bounded time."""
        marks = []
        for writer in self._layout.writers():
            progress = self._progress.get(writer)
            if progress is None:
                path = progress_path(self._layout.writer_directory(writer))
                progress = self._progress[writer] = Progress(path)
            mark = progress.answered
            if progress.indexed < mark:
                progress.wanted = max(progress.wanted, mark)
                marks.append((progress, mark))
        end = time.monotonic() + timeout_s
        for progress, mark in marks:
            while progress.indexed < mark:
                if time.monotonic() > end:
                    return False
                time.sleep(FRESH_POLL_S)
        return True

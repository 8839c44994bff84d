"""How long the data disk takes to say that bytes are durable: every C-STORE waits for it."""

import os
import statistics
import time

from appliance.foundation.files import FileSystem
from appliance.health.check import Findings, ok, warning

CONDITION = "flush_time"
FLUSH_COUNT = 5
FLUSH_BYTES = 4096
SLOW_S = 0.1
# A consumer SSD needs some hundred µs, one with a capacitor or a controller's battery some ten.
UNBELIEVABLE_S = 15e-6
_PROBE = ".doctor-flush"


def measure_flush_s(files: FileSystem, data_dir: str) -> float:
    """Return the median of a few appends of 4 KiB with fdatasync, in seconds."""
    path = os.path.join(data_dir, f"{_PROBE}-{os.getpid()}")
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    taken_s = []
    try:
        for number in range(FLUSH_COUNT):
            files.pwritev(fd, [bytes(FLUSH_BYTES)], number * FLUSH_BYTES)
            start_s = time.perf_counter()
            files.fdatasync(fd)
            taken_s.append(time.perf_counter() - start_s)
    finally:
        files.close(fd)
        files.unlink(path)
    return statistics.median(taken_s)


def check_flush_time(files: FileSystem, data_dir: str) -> Findings:
    """Time the flush; slow is a warning, unbelievably fast is said."""
    flush_s = measure_flush_s(files, data_dir)
    taken = f"a flush takes {flush_s * 1000:.2f} ms"
    if flush_s > SLOW_S:
        return [
            warning(
                CONDITION,
                taken,
                "Senders wait that long for each group of instances: is the disk failing, shared, "
                "or busy?",
            )
        ]
    if flush_s < UNBELIEVABLE_S:
        return [
            ok(
                CONDITION,
                taken,
                "Too fast for a flush that reaches a medium: memory, or a disk that answers "
                "early. Success then does not survive a power cut",
            )
        ]
    return [ok(CONDITION, taken)]

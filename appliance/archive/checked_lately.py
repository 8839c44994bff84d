"""Which large datasets were found right a short while ago.

Whoever reads a long run of frames asks for one after the other, and each would cost reading the
whole instance. What is noted here is believed for a while, in this process only.
"""

import threading
from collections import OrderedDict

from appliance.foundation.clock import Clock

KEPT_MAX = 256

Place = tuple[str, int, bytes]
"""Pack id, offset in the plain tar, sha256."""


class CheckedLately:
    """Places and when each was checked; any thread. `_lock` guards them."""

    def __init__(self, clock: Clock, believed_s: float) -> None:
        """`believed_s`: 0 believes nothing."""
        self._clock = clock
        self._believed_s = believed_s
        self._lock = threading.Lock()
        self._at_s: OrderedDict[Place, float] = OrderedDict()

    def note(self, place: Place) -> None:
        """Remember that the dataset at a place was found right now."""
        with self._lock:
            self._at_s[place] = self._clock.monotonic_s()
            self._at_s.move_to_end(place)
            if len(self._at_s) > KEPT_MAX:
                self._at_s.popitem(last=False)

    def has(self, place: Place) -> bool:
        """Tell whether it was found right within the time for which that is believed."""
        with self._lock:
            at_s = self._at_s.get(place)
        return at_s is not None and self._clock.monotonic_s() - at_s < self._believed_s

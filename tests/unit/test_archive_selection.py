"""What a retrieve selected is sent once each, whatever moves while it is sent."""

import msgspec

from appliance.archive.queries import Selection
from tests.support.archive_box import Box, sample


def test_a_pack_that_comes_back_meanwhile_doubles_nothing(box: Box) -> None:
    """The first image was evicted when it was chosen, and is cached when the others are listed."""
    for number in range(3):
        box.store_sample(sample(1, number))
    box.drain()
    listed = box.served()
    first = msgspec.structs.replace(listed[0], online=False)
    selection = Selection(first, len(listed), lambda: listed)
    assert [selection[0], *selection[1:]] == [first, *listed[1:]]

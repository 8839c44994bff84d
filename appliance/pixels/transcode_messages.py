"""What a daemon and its transcoding worker say to each other.

Owns the two records and the sizes both sides hold to. Datasets travel beside them as memfds.
"""

import msgspec

MESSAGE_MAX_BYTES = 4096
DATASET_MAX_BYTES = 512 * 1024**2
RESULT_MAX_BYTES = 1024**3
IDLE_MAX_S = 60.0
"""A worker idle for longer is given no job any more; IDLE_EXIT_S later it ends by itself."""

IDLE_EXIT_S = 30.0

FRAME = "frame"
PICTURE = "picture"


class Job(msgspec.Struct, frozen=True, array_like=True):
    """One dataset and what to make of it.

    source: its transfer syntax. target: an uncompressed one to rewrite it into; or FRAME, the
    samples of its one frame; or PICTURE, which `options` describe.
    """

    source: str
    target: str
    options: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The result's length in bytes, or why there is none (the name of an exception, no text).

    The first Answer of a worker says that it is ready, and what the kernel let it give up.
    """

    length: int
    failure: str
    network_dropped: bool = False
    files_closed: bool = False


encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode

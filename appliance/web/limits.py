"""Every limit of the web daemon: sizes in bytes, times in seconds, counts."""

CONNECTIONS_MAX = 512
CONNECTIONS_PER_ADDRESS_MAX = 64
BACKLOG_MAX = 128
HANDSHAKE_MAX_S = 10.0
REQUEST_WAIT_MAX_S = 30.0
"""From the connection, or the end of an answer, to the last byte of the next request's headers."""

REQUEST_LINE_MAX_BYTES = 32 * 1024
HEADER_MAX_BYTES = 8 * 1024
HEADERS_MAX = 64
BODY_MAX_BYTES = 64 * 1024
"""Of requests that carry no instances."""

READ_MAX_BYTES = 256 * 1024
PIECE_MAX_S = 60.0
"""A piece of an answer that the client does not take in this time ends the connection."""

LINGER_MAX_S = 5.0
STOP_MAX_S = 10.0

CALLS_MAX = 16
CALLS_WAITING_MAX = 128
STREAMS_MAX = 32
STREAM_PIECES_MAX = 4
"""Pieces that lie between the archive's thread and the client."""

PIECE_BYTES = 256 * 1024

FAILURES_FREE_COUNT = 3
FAILURE_DELAY_S = 0.25
FAILURE_DELAY_MAX_S = 4.0
FAILURES_FORGOTTEN_S = 600.0
ADDRESSES_KEPT_MAX = 4096
DELAYED_MAX = 32
"""Answers to wrong tokens that wait at a time; further ones are told to come back later."""

STORE_MAX_BYTES = 64 * 2**30
"""Of one request that stores; its instances are streamed to the disk."""

PARTS_MAX = 50_000
PART_HEADERS_MAX = 16
PART_HEADERS_MAX_BYTES = 8 * 1024
BODY_PIECES_MAX = 4
BODY_SILENCE_MAX_S = 30.0
BODY_GRACE_S = 30.0
BODY_BYTES_PER_S_MIN = 1024
"""From BODY_GRACE_S on, what a body must bring on average."""

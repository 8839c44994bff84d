"""The confined process that decodes pixels: `python -m appliance.pixels.transcode_worker`.

Owns nothing but the instance it is given. Its standard input is a SOCK_SEQPACKET socket; each
message is a Job with a memfd that holds the dataset, each answer an Answer with a memfd of the
result. It holds no key, opens no file after its imports, has no network, and is killed by its
parent when it takes too long. Nothing it says is logged: decoders print what they read.
"""

import os
import socket
import sys
from collections.abc import Callable

from appliance.pixels import confinement
from appliance.pixels.transcode_messages import (
    FRAME,
    IDLE_EXIT_S,
    IDLE_MAX_S,
    MESSAGE_MAX_BYTES,
    PICTURE,
    RESULT_MAX_BYTES,
    Answer,
    Job,
    decode_job,
    encode,
)

PROCESSOR_MAX_S = 90

Work = Callable[[bytes, Job], bytes]


def main(idle_max_s: float = IDLE_MAX_S + IDLE_EXIT_S) -> int:
    """Serve jobs until the parent closes the socket, or has none for long."""
    network_dropped = confinement.drop_network_and_privileges()
    channel = socket.socket(fileno=0)
    work = _load()
    confinement.limit_resources()
    files_closed = confinement.close_file_system()
    channel.send(encode(Answer(0, "", network_dropped, files_closed)))
    channel.settimeout(idle_max_s)
    while True:
        try:
            message, descriptors, _flags, _address = socket.recv_fds(channel, MESSAGE_MAX_BYTES, 1)
        except TimeoutError:
            return 0  # its memory is of more use elsewhere
        if not message:
            return 0
        confinement.limit_processor(PROCESSOR_MAX_S)
        answer, result = _serve(work, decode_job(message), descriptors[0])
        if result is None:
            channel.send(encode(answer))
        else:
            socket.send_fds(channel, [encode(answer)], [result])
            os.close(result)


def _load() -> Work:
    # Imported after the network is gone; every codec that text may ask for is loaded while files
    # can still be opened.
    import encodings.idna  # noqa: PLC0415
    import encodings.punycode  # noqa: F401, PLC0415
    import warnings  # noqa: PLC0415

    import pydicom.config  # noqa: PLC0415
    from pydicom.charset import python_encoding  # noqa: PLC0415

    from appliance.pixels.decode import decode_frame  # noqa: PLC0415
    from appliance.pixels.reencode import reencode  # noqa: PLC0415
    from appliance.pixels.render import render, warm_up  # noqa: PLC0415

    for codec in {*python_encoding.values(), "utf-8", "ascii", "latin-1"}:
        "".encode(codec)
    warnings.simplefilter("ignore")
    warm_up()
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

    def work(content: bytes, job: Job) -> bytes:
        if job.target == FRAME:
            return decode_frame(content, job.source)
        if job.target == PICTURE:
            return render(content, job.source, job.options)
        return reencode(content, job.source, job.target)

    return work


def _serve(work: Work, job: Job, source: int) -> tuple[Answer, int | None]:
    try:
        with open(source, "rb") as stream:
            content = stream.read()
        encoded = work(content, job)
        if len(encoded) > RESULT_MAX_BYTES:
            return Answer(0, "the result is too large"), None
        result = os.memfd_create("result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(encoded)
        while view:
            view = view[os.write(result, view) :]
        return Answer(len(encoded), ""), result
    except Exception as cause:  # noqa: BLE001 - whatever a decoder raises is one failed instance
        return Answer(0, type(cause).__name__), None


if __name__ == "__main__":
    sys.exit(main())

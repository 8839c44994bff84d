"""Every record of the index in one text, for comparing two of them and for verifying one."""

import hashlib

from appliance.index.schema import Table
from appliance.index.view import View


def dump(view: View) -> bytes:
    """Return all records, a line each: table, key and body in hexadecimal."""
    lines = [
        f"{table.name.lower()} {key.hex()} {body.hex()}\n"
        for table in Table
        for key, body in view.reader.scan(table, b"")
    ]
    return "".join(lines).encode()


def fingerprint(view: View) -> str:
    """Return a hash of all records; equal sets of facts have equal fingerprints."""
    total = hashlib.sha256()
    for table in Table:
        for key, body in view.reader.scan(table, b""):
            total.update(b"%d %d %d " % (table, len(key), len(body)) + key + body)
    return total.hexdigest()

"""The kinds of value the configuration file holds: how each is written and what it parses to.

Owns the grammar of single values; knows nothing of tables or of how values relate. A parser raises
ValueError with a sentence that says how to write the value, and never repeats a secret.
"""

import ipaddress
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pyrage
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)

from appliance.foundation.units import (
    parse_duration_s,
    parse_rate_bytes_per_s,
    parse_size_bytes,
)

AE_TITLE_LENGTH_MAX = 16
UID_LENGTH_MAX = 64
MINUTES_PER_DAY = 1440

# The validation context of what was read from a file: units are needed there, and `load` itself
# runs the checks of how values fit together, so as to report them with the other faults.
FROM_FILE = "from file"

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CREDENTIAL = re.compile(r"credential:[A-Za-z0-9._-]+")
_SIGNER = re.compile(r"azekura-sign1[02-9ac-hj-np-z]{58}")
_TIME_OF_DAY = re.compile(r"(\d{2}):(\d{2})")

# PS3.3 C.12.1.1.2: the defined terms of Specific Character Set (0008,0005).
_ISO_IR = [
    "6",
    "13",
    "58",
    "87",
    "100",
    "101",
    "109",
    "110",
    "126",
    "127",
    "138",
    "144",
    "148",
    "149",
    "159",
    "166",
    "192",
    "203",
]
CHARACTER_SETS = frozenset(
    {"GB18030", "GBK"} | {f"ISO_IR {n}" for n in _ISO_IR} | {f"ISO 2022 IR {n}" for n in _ISO_IR}
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Written:
    """How a value is written in the file: its kind in a word or two, and an example."""

    kind: str
    example: str


def _text(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Let `parse` see text only: what is parsed already, or no text, goes on to the type check."""

    def parse_text(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value

    return parse_text


def _parse_ae_title(text: str) -> str:
    """PS3.5 6.2, VR AE: at most 16 characters, no backslash, no control character."""
    title = text.strip(" ")
    if not title or len(title) > AE_TITLE_LENGTH_MAX:
        raise ValueError(f"an AE title has 1 to {AE_TITLE_LENGTH_MAX} characters")
    if "\\" in title or not all(" " <= letter <= "~" for letter in title):
        raise ValueError("an AE title is made of printable ASCII without the backslash")
    return title


def _parse_uid(text: str) -> str:
    if len(text) > UID_LENGTH_MAX or not _UID.fullmatch(text):
        raise ValueError("a UID is digits and dots, no leading zeros, at most 64 characters")
    return text


def _parse_node_name(text: str) -> str:
    if not _NODE_NAME.fullmatch(text):
        raise ValueError("a node's name is 1 to 32 of a-z, 0-9 and '-': it is part of object keys")
    return text


def _parse_bucket(text: str) -> str:
    if not _BUCKET.fullmatch(text):
        raise ValueError("a bucket's name is 3 to 63 of a-z, 0-9, '.' and '-'")
    return text


def _parse_prefix(text: str) -> str:
    if text.startswith("/") or "//" in text or not all("!" <= letter <= "~" for letter in text):
        raise ValueError("a prefix is like 'radiology/': no leading slash, no space")
    return text + "/" if text and not text.endswith("/") else text


def _parse_endpoint(text: str) -> str:
    if text:
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("an endpoint is like 'https://s3.example.org'; leave it empty for AWS")
        if parts.username or parts.password:
            raise ValueError("credentials do not belong into the configuration file")
    return text.rstrip("/")


def _parse_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as cause:
        if "host bits" in str(cause):
            wider = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"'{text}' names a host and a network; write '{wider}'") from cause
        raise ValueError("write an address or a network, like '192.0.2.10/32'") from cause


def _parse_time_zone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as cause:
        raise ValueError("no such time zone; write it like 'Asia/Tokyo'") from cause
    return text


def _parse_minute(text: str) -> int:
    match = _TIME_OF_DAY.fullmatch(text)
    if match is None or int(match[2]) > 59 or int(match[1]) * 60 + int(match[2]) > MINUTES_PER_DAY:
        raise ValueError("a time of day is like '08:00', from '00:00' to '24:00'")
    return int(match[1]) * 60 + int(match[2])


def _parse_recipient(text: str) -> str:
    if text.upper().startswith("AGE-SECRET-KEY-"):
        raise ValueError(
            "this is a secret identity, not a recipient; take it out of the file, "
            "and write what `azekura key recipient` prints"
        )
    try:
        pyrage.x25519.Recipient.from_str(text)
    except Exception as cause:
        raise ValueError("an age X25519 recipient is like 'age1…', 62 characters") from cause
    return text


def _parse_key_source(text: str) -> str:
    if text.upper().startswith("AGE-SECRET-KEY-"):
        raise ValueError("a secret does not belong into this file; write the path that holds it")
    if not text.startswith("/") and not _CREDENTIAL.fullmatch(text):
        raise ValueError("write an absolute path, or 'credential:NAME' for a systemd credential")
    return text


def _parse_signer(text: str) -> str:
    """Bech32 (BIP 173) of an Ed25519 public key; its checksum is verified where keys are used."""
    if not _SIGNER.fullmatch(text):
        raise ValueError("a public signing key is like 'azekura-sign1…', 71 characters")
    return text


def _parse_signers(value: object) -> object:
    """One key, or a list of them: a node that took a new key keeps its old entries."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError("write a public signing key, or a list of them")
    return tuple(_parse_signer(str(text)) for text in texts)


def _parse_path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError("write an absolute path")
    return text.rstrip("/") or "/"


def _parse_character_set(text: str) -> str:
    terms = text.split("\\")
    unknown = [term for term in terms[1:] if term not in CHARACTER_SETS]
    if terms[0] and terms[0] not in CHARACTER_SETS:
        unknown.insert(0, terms[0])
    if unknown:
        raise ValueError(
            f"'{unknown[0]}' is no defined term of Specific Character Set; "
            "write it like 'ISO_IR 192' or '\\ISO 2022 IR 87'"
        )
    return text


def _rate_with_unit(value: Any, info: ValidationInfo) -> Any:
    """Refuse a bare number in a file: who writes 50 means megabits, not bytes."""
    if isinstance(value, int | float) and info.context == FROM_FILE:
        raise ValueError("must be a rate with its unit; write it like '50 Mbit/s'")
    return value


def _finite(value: float) -> float:
    if not value < float("inf"):
        raise ValueError("write a finite number")
    return value


def write_size(size_bytes: int) -> str:
    """Return the exact size in the largest unit that divides it."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} B"


def write_duration(duration_s: float) -> str:
    """Return the exact duration in the largest unit that divides it."""
    for unit, factor in (("y", 365.25 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if duration_s and duration_s % factor == 0:
            return f"{duration_s / factor:.0f} {unit}"
    return f"{duration_s:g} s"


def write_rate(rate_bytes_per_s: float | None) -> str:
    """Return the rate in bits, as lines are sold; `off` for no limit."""
    if rate_bytes_per_s is None:
        return "off"
    bits = rate_bytes_per_s * 8
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits % factor == 0:
            return f"{bits / factor:.0f} {unit}"
    return f"{bits:g} bit/s"


def write_minute(minute: int) -> str:
    """Return a minute of the day as `HH:MM`."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _kind(
    kind: str, example: str, parse: Callable[[str], Any], schema: str = "string"
) -> tuple[Any, ...]:
    return (
        BeforeValidator(_text(parse)),
        WithJsonSchema({"type": schema, "examples": [example]}),
        Written(kind, example),
    )


Flag = Annotated[bool, Field(strict=True), Written("true or false", "true")]
Count = Annotated[int, Field(strict=True), Written("whole number", "4")]
Fraction = Annotated[float, Field(strict=True, gt=0.0, lt=1.0), Written("fraction", "0.9")]
Text = Annotated[str, Field(strict=True, max_length=256), Written("text", "")]
ListenPort = Annotated[int, Field(strict=True, ge=0, le=65535), Written("port", "11112")]
Port = Annotated[int, Field(strict=True, ge=1, le=65535), Written("port", "104")]
Host = Annotated[
    str, Field(strict=True, min_length=1, max_length=253), Written("host or address", "192.0.2.10")
]
AeTitle = Annotated[str, Field(strict=True), *_kind("AE title", "PACS1", _parse_ae_title)]
Uid = Annotated[str, Field(strict=True), *_kind("UID", "1.2.840.10008.5.1.4.1.1.2", _parse_uid)]
NodeName = Annotated[str, Field(strict=True), *_kind("name", "site-a", _parse_node_name)]
Bucket = Annotated[str, Field(strict=True), *_kind("bucket", "hospital-a-archive", _parse_bucket)]
Prefix = Annotated[str, Field(strict=True), *_kind("text", "radiology/", _parse_prefix)]
Endpoint = Annotated[
    str, Field(strict=True), *_kind("URL", "https://s3.example.org", _parse_endpoint)
]
TimeZone = Annotated[str, Field(strict=True), *_kind("time zone", "Asia/Tokyo", _parse_time_zone)]
Path = Annotated[str, Field(strict=True), *_kind("path", "/var/lib/azekura", _parse_path)]
KeySource = Annotated[
    str, Field(strict=True), *_kind("path or credential", "/etc/azekura/key", _parse_key_source)
]
Recipient = Annotated[str, Field(strict=True), *_kind("age recipient", "age1…", _parse_recipient)]
Signers = Annotated[
    tuple[str, ...],
    BeforeValidator(_parse_signers),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "examples": ["azekura-sign1…"],
        }
    ),
    Written("public key", "azekura-sign1…"),
]
CharacterSet = Annotated[
    str, Field(strict=True), *_kind("character set", "ISO_IR 192", _parse_character_set)
]
Address = Annotated[
    Network,
    *_kind("address or network", "192.0.2.10/32", _parse_network),
    PlainSerializer(str, return_type=str),
]
Minute = Annotated[
    int,
    Field(strict=True, ge=0, le=MINUTES_PER_DAY),
    *_kind("time of day", "08:00", _parse_minute),
    PlainSerializer(write_minute, return_type=str),
]
SizeBytes = Annotated[
    int,
    Field(strict=True),
    *_kind("size", "64 MiB", parse_size_bytes),
    PlainSerializer(write_size, return_type=str),
]
DurationS = Annotated[
    float,
    Field(strict=True),
    *_kind("duration", "10 s", parse_duration_s),
    AfterValidator(_finite),
    PlainSerializer(write_duration, return_type=str),
]
RateBytesPerS = Annotated[
    float | None,
    Field(strict=True),
    *_kind("rate", "50 Mbit/s", parse_rate_bytes_per_s),
    BeforeValidator(_rate_with_unit),
    PlainSerializer(write_rate, return_type=str),
]
Role = Annotated[Literal["appliance", "standby"], Written("one of", "appliance")]
AcceptStores = Annotated[Literal["never", "when-silent", "always"], Written("one of", "never")]
Rung = Annotated[Literal["local", "cloud", "locked"], Written("one of", "locked")]
Permission = Annotated[
    Literal["echo", "store", "find", "move", "get", "commit", "destination"],
    Written("one of", "store"),
]
ReportBy = Annotated[Literal["same", "new"], Written("one of", "same")]
Availability = Annotated[Literal["NEARLINE", "ONLINE"], Written("one of", "NEARLINE")]
ObjectLock = Annotated[Literal["compliance", "governance", "off"], Written("one of", "compliance")]
Weekday = Annotated[
    Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], Written("one of", "mon")
]

"""The typed model of the one TOML file.

Owns every key: its type, its default, its meaning. Reads no file and asks nothing of the machine.
Invariants: every model is frozen; a key that is not here is refused; a name that ends in a unit
(`capacity_bytes`) is written without it in the file (`capacity`), as the alias says. How values
must fit together is in `checks`, which every `Config` has passed, however it was made.
"""

import ipaddress
from datetime import datetime
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationInfo, model_validator

from appliance.config import checks
from appliance.config.care import Alarms, Drill, Scrub
from appliance.config.table import DAY_S, MIB, YEAR_S, Table
from appliance.config.values import (
    FROM_FILE,
    AcceptStores,
    Address,
    AeTitle,
    Availability,
    Bucket,
    CharacterSet,
    Count,
    DurationS,
    Endpoint,
    Flag,
    Fraction,
    Host,
    KeySource,
    ListenPort,
    Minute,
    NodeName,
    ObjectLock,
    Path,
    Permission,
    Port,
    Prefix,
    RateBytesPerS,
    Recipient,
    ReportBy,
    Role,
    Rung,
    Signers,
    SizeBytes,
    Text,
    TimeZone,
    Uid,
    Weekday,
)
from appliance.foundation.errors import ConfigurationError

ANY_TITLE = "*"
_WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Node(Table):
    """Who this node is and where it keeps its data."""

    name: NodeName = Field(
        description="The writer's name in the ledger. It is part of object keys and never changes."
    )
    role: Role = Field(
        "appliance",
        description="`appliance` receives and archives. `standby` follows the ledgers of others.",
    )
    data_dir: Path = Field(
        "/var/lib/azekura",
        description="The directory of packs, index and state, on the data disk. "
        "The service's user owns it.",
    )
    timezone: TimeZone = Field(
        "UTC",
        description="The time zone of the throttle's timetable and of what people read. "
        "Stored times are UTC.",
    )
    demo: Flag = Field(
        default=False,
        description="A trial without patients: a recovery recipient is not needed then. "
        "What a demo stored can be read by nobody once its identity is lost.",
    )

    @property
    def zone(self) -> ZoneInfo:
        """The time zone as an object."""
        return ZoneInfo(self.timezone)


class DicomTls(Table):
    """Mutual TLS for DICOM, after BCP 195 (PS3.15 B.9 and later profiles)."""

    port: ListenPort = Field(2762, description="The port that TLS associations call.")
    certificate: Path = Field(description="The PEM file of this node's certificate and its chain.")
    key: KeySource = Field(
        description="The PEM file of the certificate's private key, mode 0600, "
        "or `credential:NAME`."
    )
    ca: Path = Field(
        description="The PEM file of the authorities that sign the peers' certificates."
    )


class Peer(Table):
    """A DICOM application entity that this node knows: who calls, who is called, what for.

    Several peers may share an AE title when their addresses tell them apart. The most specific
    one counts: its own title before `*`, the longest network before a wider one.
    """

    ae_title: AeTitle = Field(
        description="The peer's AE title; `*` stands for any title that no other peer has."
    )
    addresses: tuple[Address, ...] = Field(
        (),
        description="Where the peer may call from. Needed by every peer that may call; "
        "`0.0.0.0/0` and `::/0` stand for anywhere.",
    )
    host: Host | None = Field(
        None, description="Where the peer is called. Needed for `destination` and `commit`."
    )
    port: Port | None = Field(None, description="The port on which the peer is called.")
    allow: Annotated[tuple[Permission, ...], Field(min_length=1)] = Field(
        description="What the peer may do: `echo`, `store`, `find`, `move`, `get`, `commit` "
        "(ask for storage commitment), and `destination` (receive what a C-MOVE sends)."
    )
    commitment: Rung = Field(
        "locked",
        description="The rung at which storage commitment is answered with success: `local` "
        "(on this disk), `cloud` (read back from the bucket), `locked` (and under Object Lock).",
    )
    tls: Flag = Field(
        default=False, description="The peer calls, and is called, over TLS and in no other way."
    )
    character_set: CharacterSet = Field(
        "",
        description="The character set of the peer's datasets and queries that name none, "
        "like `ISO_IR 100`.",
    )
    issuer: Text = Field(
        "",
        description="IssuerOfPatientID where the peer gives none. Empty takes `dicom.issuer`.",
    )
    max_associations: Annotated[Count, Field(ge=1, le=256)] = Field(
        16, description="How many associations the peer may have open at a time."
    )
    commit_host: Host | None = Field(
        None, description="Where commitment reports go instead of `host`."
    )
    commit_port: Port | None = Field(
        None, description="The port to which commitment reports go instead of `port`."
    )
    commit_ae: AeTitle | None = Field(
        None, description="The AE title to which commitment reports go instead of the asker's."
    )
    commit_report: ReportBy = Field(
        "same",
        description="`same` reports on the association that asked while it is open, else on a new "
        "one. `new` always opens one, for a peer that can't take a report on its own.",
    )
    commit_deadline_s: Annotated[DurationS, Field(ge=60, le=90 * DAY_S)] = Field(
        DAY_S,
        alias="commit_deadline",
        description="How long a report waits for the rung before what has not reached it "
        "is reported as failed.",
    )
    web_certificates: tuple[Text, ...] = Field(
        (),
        description="Common names of the client certificates with which the peer calls DICOMweb. "
        "It may then do there what `allow` says: `find` to search, `get` to retrieve, `store`.",
    )
    report_nearline_as: Availability = Field(
        "NEARLINE",
        description="The InstanceAvailability that this peer's queries get for an evicted study: "
        "`ONLINE` for a peer that never asks for anything nearline.",
    )

    def may(self, permission: Permission) -> bool:
        """Whether the peer is allowed to do that."""
        return permission in self.allow

    def match_length(self, calling_ae: str, address: str) -> int | None:
        """Return how closely this peer fits a caller, None when it does not, larger is closer."""
        if self.ae_title not in {ANY_TITLE, calling_ae}:
            return None
        caller = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped:
            caller = caller.ipv4_mapped
        lengths = [net.prefixlen for net in self.addresses if caller in net]
        if not lengths:
            return None
        return max(lengths) + (0 if self.ae_title == ANY_TITLE else 1000)

    def report_address(self) -> tuple[str, int] | None:
        """Return host and port of commitment reports, None when the peer has none."""
        host, port = self.commit_host or self.host, self.commit_port or self.port
        return (host, port) if host and port else None


def long_form(data: object) -> object:
    """Return the table `dicom` with the short form `ae_title` written as `ae_titles`."""
    if isinstance(data, dict) and "ae_title" in data and "ae_titles" not in data:
        rest = {key: value for key, value in data.items() if key != "ae_title"}
        return {"ae_titles": [data["ae_title"]], **rest}
    return data


class Dicom(Table):
    """The DICOM edge: this node's titles and ports, and its peers."""

    ae_titles: Annotated[tuple[AeTitle, ...], Field(min_length=1)] = Field(
        ("AZEKURA",),
        description="The titles under which this node is called, the first being its own. "
        "An old archive's titles are inherited by listing them here.",
    )
    reject_unknown_called: Flag = Field(
        default=False, description="Reject an association that calls a title not listed."
    )
    host: Host = Field("0.0.0.0", description="The address to listen on.")  # noqa: S104
    port: ListenPort = Field(11112, description="The port to listen on; 0 takes any free one.")
    issuer: Text = Field(
        "", description="IssuerOfPatientID where neither the dataset nor the peer gives one."
    )
    extra_sop_classes: tuple[Uid, ...] = Field(
        (), description="Private storage SOP classes to accept besides the standard ones."
    )
    tls: DicomTls | None = Field(None, description="Mutual TLS on a port of its own.")
    peers: tuple[Peer, ...] = Field((), description="The application entities this node knows.")

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, data: object) -> object:
        return long_form(data)

    @property
    def ae_title(self) -> str:
        """The title under which this node calls others."""
        return self.ae_titles[0]

    def peer_calling(self, calling_ae: str, address: str) -> Peer | None:
        """Return the peer that a caller is, the closest match, or None for a stranger."""
        fitting = [
            (length, -position, peer)
            for position, peer in enumerate(self.peers)
            if (length := peer.match_length(calling_ae, address)) is not None
        ]
        return max(fitting, key=lambda found: found[:2])[2] if fitting else None

    def destination(self, ae_title: str) -> Peer | None:
        """Return the peer to which a C-MOVE may send under that title, or None."""
        for peer in self.peers:
            if peer.ae_title == ae_title and peer.may("destination"):
                return peer
        return None


class Cache(Table):
    """How much of the disk the archive uses, and when it evicts."""

    capacity_bytes: Annotated[SizeBytes, Field(ge=1 * MIB)] = Field(
        alias="capacity", description="How much disk packs may use: the local cache."
    )
    high_water: Fraction = Field(
        0.90, description="The part of the capacity at which eviction of verified studies starts."
    )
    low_water: Fraction = Field(
        0.80, description="The part of the capacity at which eviction stops."
    )


class Packs(Table):
    """When a pack closes."""

    target_size_bytes: Annotated[SizeBytes, Field(ge=64 * 1024, le=4096 * MIB)] = Field(
        64 * MIB, alias="target_size", description="A pack of this size closes."
    )
    quiet_s: Annotated[DurationS, Field(ge=0.1, le=600)] = Field(
        10.0, alias="quiet", description="A pack whose study got nothing new for so long closes."
    )
    max_age_s: Annotated[DurationS, Field(ge=1, le=3600)] = Field(
        60.0, alias="max_age", description="A pack of this age closes, quiet or not."
    )


class ThrottleWindow(Table):
    """A part of the week with a rate of its own."""

    days: Annotated[tuple[Weekday, ...], Field(min_length=1)] = Field(
        _WEEKDAYS, description="The days on which the window begins."
    )
    from_minute: Minute = Field(alias="from", description="The local time at which it begins.")
    to_minute: Minute = Field(
        alias="to",
        description="The local time at which it ends; earlier than `from` means the next day.",
    )
    rate_bytes_per_s: RateBytesPerS = Field(
        alias="rate", description="The rate in the window; `off` for no limit."
    )

    def minutes(self) -> list[tuple[int, int]]:
        """Return the window as half-open minutes of the week, Monday 00:00 being 0."""
        week = checks.MINUTES_PER_WEEK
        found: list[tuple[int, int]] = []
        for day in dict.fromkeys(self.days):
            start = _WEEKDAYS.index(day) * 1440 + self.from_minute
            end = _WEEKDAYS.index(day) * 1440 + self.to_minute
            end += 1440 if self.to_minute <= self.from_minute else 0
            found.append((start, min(end, week)))
            if end > week:
                found.append((0, end - week))
        return found


class Throttle(Table):
    """How fast the node may send to the bucket, by a weekly timetable in the node's time zone."""

    rate_bytes_per_s: RateBytesPerS = Field(
        None,
        alias="rate",
        description="The rate outside every window, of bytes on the wire; `off` for no limit.",
    )
    windows: tuple[ThrottleWindow, ...] = Field(
        (), description="Parts of the week with rates of their own. They may not overlap."
    )

    def rate_at(self, local: datetime) -> float | None:
        """Return bytes a second at a local wall time, None for no limit."""
        minute = local.weekday() * 1440 + local.hour * 60 + local.minute
        for window in self.windows:
            if any(start <= minute < end for start, end in window.minutes()):
                return window.rate_bytes_per_s
        return self.rate_bytes_per_s


class RetentionRule(Table):
    """How long the instances are kept that fit every condition of the rule; the first rule counts.

    A pack is kept as long as the longest-kept instance in it, a study as long as its latest pack.
    """

    modalities: tuple[Text, ...] = Field(
        (), description="Any of these values of Modality (0008,0060)."
    )
    calling_ae_titles: tuple[AeTitle, ...] = Field(
        (), description="Sent under any of these calling AE titles."
    )
    called_ae_titles: tuple[AeTitle, ...] = Field(
        (), description="Sent to any of these called AE titles."
    )
    retention_s: Annotated[DurationS, Field(ge=DAY_S, le=100 * YEAR_S)] = Field(
        alias="retention", description="How long such an instance stays locked from its upload on."
    )


class Replica(Table):
    """A copy of the bucket in another region or at another provider, only ever read.

    The provider's replication, or somebody else, keeps it up to date. Reads go there while the
    bucket can't be reached, and for an object that it lacks or that is damaged there. Nothing is
    ever evicted, verified or committed by its word.
    """

    endpoint_url: Endpoint = Field(
        "", description="The object store's URL; empty for AWS in `region`."
    )
    region: Text = Field("", description="The replica's region. Needed for AWS.")
    bucket: Bucket = Field(description="The replica's bucket.")
    prefix: Prefix = Field("", description="What every key begins with there.")
    profile: Text = Field(
        "",
        description="The AWS profile whose credentials read it; empty for those of the bucket.",
    )

    @property
    def name(self) -> str:
        """How people are told of it."""
        return f"{self.bucket} at {self.endpoint_url or self.region}"


class Cloud(Table):
    """The bucket. Credentials come from the usual AWS places, never from this file."""

    endpoint_url: Endpoint = Field(
        "", description="The object store's URL; empty for AWS in `region`."
    )
    region: Text = Field("", description="The bucket's region. Needed for AWS.")
    bucket: Bucket = Field(description="The bucket. It is never created or reconfigured by a node.")
    prefix: Prefix = Field("", description="What every key begins with, like `radiology/`.")
    object_lock: ObjectLock = Field(
        "compliance",
        description="The mode of Object Lock that each object gets. With `off` no peer may ask "
        "for the rung `locked`.",
    )
    retention_s: Annotated[DurationS, Field(ge=DAY_S, le=100 * YEAR_S)] = Field(
        5 * YEAR_S,
        alias="retention",
        description="How long an object stays locked from its upload on.",
    )
    retention_rules: tuple[RetentionRule, ...] = Field(
        (),
        description="Other terms for some instances. What names packs, the ledger and its "
        "checkpoints, is locked for the longest of all.",
    )
    throttle: Throttle = Field(Throttle(), description="How fast the node may send.")
    replicas: Annotated[tuple[Replica, ...], Field(max_length=4)] = Field(
        (), description="Copies of the bucket elsewhere, in the order in which they are read."
    )

    @property
    def longest_retention_s(self) -> float:
        """The longest of the retention and the rules'."""
        return max([self.retention_s, *(rule.retention_s for rule in self.retention_rules)])


class Keys(Table):
    """Who can read the archive, and with what this node signs. No secret is in this file."""

    identity: KeySource = Field(
        "credential:azekura-identity",
        description="The file of this node's age identities, mode 0600, or a systemd credential. "
        "The first is for new objects; further ones keep old objects readable.",
    )
    signing: KeySource = Field(
        "credential:azekura-signing",
        description="The file of the Ed25519 key that signs this node's ledger, mode 0600, "
        "or a systemd credential.",
    )
    recipients: tuple[Recipient, ...] = Field(
        (), description="Who else can read every object: each standby's age recipient."
    )
    recovery: tuple[Recipient, ...] = Field(
        (),
        description="The recipients whose identities are printed and kept in a safe. At least "
        "one, unless `node.demo` is true.",
    )
    signers: dict[NodeName, Signers] = Field(
        {},
        description="The public signing keys of the other nodes on this bucket, by node name: "
        "whose ledgers are believed and followed. A node that took a new signing key has a list.",
    )


class Standby(Table):
    """How a standby stands in for the nodes that it follows."""

    accept_stores: AcceptStores = Field(
        "never",
        description="Whether a standby takes new studies: `when-silent` while a node that it "
        "follows gives no sign of life. With `never` it writes no ledger and no pack, and needs "
        "neither `keys.signing` nor `keys.recovery`.",
    )
    silent_after_s: Annotated[DurationS, Field(ge=1, le=30 * DAY_S)] = Field(
        600.0,
        alias="silent_after",
        description="How long a node may give no sign of life before it counts as silent.",
    )
    retired: tuple[NodeName, ...] = Field(
        (), description="Nodes that are gone for good: their silence means nothing."
    )


class WebTls(Table):
    """A certificate of the hospital's for the web interface, instead of one that is made here."""

    certificate: Path = Field(description="The PEM file of the certificate and its chain.")
    key: KeySource = Field(
        description="The PEM file of the certificate's private key, mode 0600, "
        "or `credential:NAME`."
    )


class Web(Table):
    """The web interface and DICOMweb: always HTTPS."""

    host: Host = Field("0.0.0.0", description="The address to listen on.")  # noqa: S104
    port: ListenPort = Field(8443, description="The port to listen on; 0 takes any free one.")
    names: tuple[Host, ...] = Field(
        (),
        description="Further names and addresses under which viewers reach the node, for the "
        "certificate that is made here.",
    )
    tls: WebTls | None = Field(
        None,
        description="A certificate of the hospital's. Without it the node makes its own authority "
        "and certificate in `state/web/`.",
    )
    client_ca: Path | None = Field(
        None,
        description="The PEM file of the authorities that sign certificates of DICOMweb clients. "
        "Needed where a peer has `web_certificates`.",
    )


class Config(Table):
    """The whole file. Making one raises ConfigurationError when values do not fit together."""

    node: Node = Field(description="Who this node is.")
    dicom: Dicom = Field(Dicom(), description="The DICOM edge.")
    cache: Cache = Field(description="The local cache.")
    packs: Packs = Field(Packs(), description="When packs close.")
    cloud: Cloud = Field(description="The bucket.")
    alarms: Alarms = Field(Alarms(), description="When the backlog is a problem.")
    drill: Drill = Field(Drill(), description="The restore drill.")
    scrub: Scrub = Field(Scrub(), description="Rereading what is stored.")
    keys: Keys = Field(Keys(), description="Recipients, identity and signing key.")
    standby: Standby = Field(Standby(), description="How a standby stands in for other nodes.")
    web: Web = Field(Web(), description="The web interface.")

    @property
    def writes(self) -> bool:
        """Whether this node may ever write packs and a ledger of its own."""
        return self.node.role == "appliance" or self.standby.accept_stores != "never"

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        if info.context == FROM_FILE:
            return self
        findings = checks.check(self)
        if findings:
            raise ConfigurationError("values", tuple(str(finding) for finding in findings))
        return self

"""The configuration file: what is taken, what it parses to, and that every fault is named."""

import tomllib
from datetime import datetime
from ipaddress import ip_network

import pydantic
import pyrage
import pytest

from appliance.config.describe import to_toml
from appliance.config.load import load, loads
from appliance.config.model import Config, Peer
from appliance.foundation.errors import ConfigurationError

RECOVERY = "age1ccfh4ks9cztd4z79rerdv3h8daagw6tl2r2sd7rg0psdu6v7hghqpzvcq8"
STANDBY = "age1v3st50dq2kq2vnjhwyf3u4kw9lsczlln8eh09g83zqzgj6a4f3ssumyg89"

WHOLE = f"""
[node]
name = "site-a"
role = "appliance"
data_dir = "/var/lib/azekura/"
timezone = "Asia/Tokyo"
[dicom]
ae_title = "AZEKURA"
reject_unknown_called = false
host = "0.0.0.0"
port = 11112
issuer = "HOSPITAL"
extra_sop_classes = ["1.3.12.2.1107.5.9.1"]
[dicom.tls]
certificate = "/etc/azekura/tls.pem"
key = "credential:azekura-tls"
ca = "/etc/azekura/ca.pem"
[[dicom.peers]]
ae_title = "PACS1"
addresses = ["192.0.2.10/32"]
host = "192.0.2.10"
port = 104
allow = ["echo", "store", "find", "move", "get", "commit", "destination"]
commitment = "locked"
commit_deadline = "36 h"
[[dicom.peers]]
ae_title = "*"
addresses = ["192.0.2.0/24", "2001:db8::/32"]
allow = ["echo", "store"]
tls = true
character_set = "\\\\ISO 2022 IR 87"
[cache]
capacity = "2 TiB"
high_water = 0.90
low_water = 0.80
[packs]
target_size = "64 MiB"
quiet = "10 s"
max_age = "60 s"
[cloud]
endpoint_url = ""
region = "ap-northeast-1"
bucket = "hospital-a-archive"
prefix = "radiology"
object_lock = "compliance"
retention = "5 y"
[cloud.throttle]
rate = "50 Mbit/s"
[[cloud.throttle.windows]]
days = ["mon", "tue", "wed", "thu", "fri"]
from = "08:00"
to = "18:00"
rate = "10 Mbit/s"
[[cloud.replicas]]
endpoint_url = "https://s3.example.org"
bucket = "hospital-a-copy"
profile = "reads-the-copy"
[keys]
identity = "credential:azekura-identity"
recipients = ["{STANDBY}"]
recovery = ["{RECOVERY}"]
[web]
host = "0.0.0.0"
port = 8443
"""


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        loads(text)
    return raised.value.faults


def changed(*replacements: tuple[str, str]) -> str:
    text = WHOLE
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_loads_parses_units_into_the_attributes_that_name_them() -> None:
    config = loads(WHOLE)
    assert config.cache.capacity_bytes == 2 * 2**40
    assert config.packs.target_size_bytes == 64 * 2**20
    assert (config.packs.quiet_s, config.packs.max_age_s) == (10.0, 60.0)
    assert config.cloud.retention_s == 5 * 365.25 * 86400
    assert config.cloud.throttle.rate_bytes_per_s == 6_250_000.0
    assert config.cloud.prefix == "radiology/"
    assert config.node.data_dir == "/var/lib/azekura"
    assert config.node.zone.key == "Asia/Tokyo"
    assert config.dicom.ae_titles == ("AZEKURA",)
    assert config.dicom.peers[0].commit_deadline_s == 36 * 3600
    assert config.dicom.peers[1].addresses[1] == ip_network("2001:db8::/32")


def test_loads_takes_the_least_that_a_node_needs() -> None:
    config = loads(
        '[node]\nname = "a"\ndemo = true\n[cache]\ncapacity = "1 GiB"\n'
        '[cloud]\nbucket = "abc"\nendpoint_url = "http://127.0.0.1:8333"\n'
    )
    assert config.dicom.ae_title == "AZEKURA"
    assert config.keys.identity == "credential:azekura-identity"
    assert config.cloud.throttle.rate_bytes_per_s is None


def test_config_is_frozen() -> None:
    config = loads(WHOLE)
    with pytest.raises(pydantic.ValidationError):
        config.dicom.port = 104  # type: ignore[misc]


def test_loads_reports_every_fault_at_once() -> None:
    found = faults(
        changed(
            ("port = 104", 'port = "104"'),
            ('name = "site-a"', 'name = "Site A"'),
            ("high_water = 0.90", "high_water = 0.70"),
            ('quiet = "10 s"', 'quiet = "soon"'),
            (f'recovery = ["{RECOVERY}"]', ""),
            ('to = "18:00"', 'to = "18:60"'),
            ("[web]", "[wab]"),
        )
    )
    places = [fault.partition(":")[0] for fault in found]
    assert sorted(places) == sorted(
        [
            "dicom.peers[0].port",
            "node.name",
            "cache.low_water",
            "packs.quiet",
            "keys.recovery",
            "cloud.throttle.windows[0].to",
            "wab",
        ]
    )


def test_loads_says_how_to_write_it_and_which_peer_is_meant() -> None:
    (fault,) = faults(changed(("port = 104", 'port = "104"')))
    assert fault == "dicom.peers[0].port: must be a port; write it like '104' (the peer 'PACS1')"


def test_loads_does_not_conclude_from_a_faulty_value() -> None:
    """low_water is above the default high_water, but high_water itself is what is wrong."""
    (fault,) = faults(changed(("high_water = 0.90", "high_water = 9"), ("0.80", "0.95")))
    assert fault.startswith("cache.high_water:")


def test_loads_suggests_the_key_that_was_meant() -> None:
    (fault,) = faults(changed(("reject_unknown_called", "reject_unknown_caled")))
    assert fault.endswith("did you mean 'reject_unknown_called'?")


def test_loads_refuses_the_attribute_names_that_carry_units() -> None:
    (fault,) = faults(changed(('capacity = "2 TiB"', 'capacity = "2 TiB"\ncapacity_bytes = 5')))
    assert fault.startswith("cache.capacity_bytes: is no key of this table")


def test_loads_names_what_an_empty_file_needs() -> None:
    found = faults("")
    assert "node.name: is missing; write it like 'site-a'" in found
    assert any(fault.startswith("cache.capacity: is missing") for fault in found)
    assert any(fault.startswith("cloud.bucket: is missing") for fault in found)
    assert any(fault.startswith("keys.recovery:") for fault in found)


def test_loads_names_the_place_where_it_is_no_toml() -> None:
    (fault,) = faults("[node]\nname = site\n")
    assert "line 2" in fault


def test_load_of_a_missing_file_is_a_configuration_error(tmp_path: object) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(f"{tmp_path}/none.toml")
    assert "No such file" in raised.value.faults[0]
    assert raised.value.hint


def test_load_of_a_binary_file_is_a_configuration_error(tmp_path: object) -> None:
    path = f"{tmp_path}/binary.toml"
    with open(path, "wb") as file:
        file.write(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError) as raised:
        load(path)
    assert raised.value.faults == (f"{path}: is not UTF-8 text",)


def test_a_secret_in_the_wrong_place_is_named_but_not_repeated() -> None:
    secret = str(pyrage.x25519.Identity.generate())
    for old, new in (
        (f'"{RECOVERY}"', f'"{secret}"'),
        ('identity = "credential:azekura-identity"', f'identity = "{secret}"'),
        ('[web]\nhost = "0.0.0.0"', f'[web]\nhosts = "{secret}"'),
    ):
        with pytest.raises(ConfigurationError) as raised:
            loads(changed((old, new)))
        assert "AGE-SECRET-KEY" not in str(raised.value).upper()
        assert secret not in repr(raised.value.__context__)


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ('"Asia/Tokyo"', '"Asia/Tokio"', "node.timezone", "no such time zone"),
        ('"Asia/Tokyo"', '"../../etc/passwd"', "node.timezone", "no such time zone"),
        ('"AZEKURA"', '"AZEKURA-OF-HOSPITAL"', "dicom.ae_title", "1 to 16"),
        ('"AZEKURA"', '"AZEK\\\\URA"', "dicom.ae_title", "backslash"),
        ('"PACS1"', '"PÄCS"', "dicom.peers[0].ae_title", "printable ASCII"),
        ("192.0.2.10/32", "192.0.2.10/24", "dicom.peers[0].addresses[0]", "192.0.2.0/24"),
        ("192.0.2.10/32", "pacs1", "dicom.peers[0].addresses[0]", "like '192.0.2.10/32'"),
        ('"echo", "store", "find"', '"ecko", "store", "find"', "dicom.peers[0].allow[0]", "'echo'"),
        ('commitment = "locked"', 'commitment = "sure"', "dicom.peers[0].commitment", "'cloud'"),
        ('"36 h"', '"5 s"', "dicom.peers[0].commit_deadline", "at least 1 min"),
        ("port = 104", "port = 0", "dicom.peers[0].port", "at least 1"),
        ("ISO 2022 IR 87", "SHIFT_JIS", "dicom.peers[1].character_set", "SHIFT_JIS"),
        ('"1.3.12.2.1107.5.9.1"', '"1.03.2"', "dicom.extra_sop_classes[0]", "leading zeros"),
        ('"2 TiB"', '"2 TX"', "cache.capacity", "64 MiB"),
        ('"2 TiB"', "true", "cache.capacity", "must be a size"),
        ('"64 MiB"', '"8 GiB"', "packs.target_size", "at most 4 GiB"),
        ('"64 MiB"', '"1 KiB"', "packs.target_size", "at least 64 KiB"),
        ('"5 y"', '"1 h"', "cloud.retention", "at least 1 d"),
        ('"5 y"', "inf", "cloud.retention", "finite"),
        ('"5 y"', "nan", "cloud.retention", "finite"),
        ('"50 Mbit/s"', '"fast"', "cloud.throttle.rate", "50 Mbit/s"),
        ('"50 Mbit/s"', "50", "cloud.throttle.rate", "must be a rate"),
        ('"08:00"', '"8 am"', "cloud.throttle.windows[0].from", "08:00"),
        ('"hospital-a-archive"', '"Hospital"', "cloud.bucket", "3 to 63"),
        ('prefix = "radiology"', 'prefix = "/x"', "cloud.prefix", "no leading slash"),
        ('endpoint_url = ""', 'endpoint_url = "s3.local"', "cloud.endpoint_url", "https://"),
        ('endpoint_url = ""', 'endpoint_url = "http://a:b@c"', "cloud.endpoint_url", "credentials"),
        ('region = "ap-northeast-1"', "", "cloud.region", "needed for AWS"),
        ('endpoint_url = "https://s3.example.org"', "", "cloud.replicas[0].region", "for AWS"),
        (
            'endpoint_url = "https://s3.example.org"\nbucket = "hospital-a-copy"',
            'region = "ap-northeast-1"\nbucket = "hospital-a-archive"\nprefix = "radiology/"',
            "cloud.replicas[0].bucket",
            "the bucket itself",
        ),
        ('"credential:azekura-identity"', '"identity.key"', "keys.identity", "absolute path"),
        (f'"{STANDBY}"', f'"{STANDBY[:-1]}"', "keys.recipients[0]", "age1"),
        (f'"{STANDBY}"', '"ssh-ed25519 AAAA"', "keys.recipients[0]", "age1"),
        (f'"{STANDBY}"', f'"{RECOVERY}"', "keys.recipients", "one place"),
        ("port = 8443", "port = 11112", "web.port", "taken by dicom.port"),
        ('max_age = "60 s"', 'max_age = "5 s"', "packs.max_age", "at least quiet"),
        ('to = "18:00"', 'to = "08:00"', "cloud.throttle.windows[0].to", "same as from"),
        ('capacity = "2 TiB"', 'capacity = "100 MiB"', "packs.target_size", "quarter"),
        ('lock = "compliance"', 'lock = "off"', "dicom.peers[0].commitment", "'cloud'"),
        ('addresses = ["192.0.2.10/32"]', "", "dicom.peers[0].addresses", "anywhere"),
        ('ae_title = "AZEKURA"', 'ae_title = "A"\nae_titles = ["B"]', "dicom.ae_title", "enough"),
        ('ae_title = "AZEKURA"', 'ae_titles = ["B", "B"]', "dicom.ae_titles", "twice"),
        ("[dicom.tls]", "[dicom.tls]\nport = 11112", "dicom.tls.port", "taken by dicom.port"),
        ('"mon", "tue"', '"monday", "tue"', "cloud.throttle.windows[0].days[0]", "'mon'"),
        ("[keys]", '[keys]\nsigners = { site-a = "x" }', "keys.signers.site-a", "azekura-sign1"),
        ("[keys]", "[keys]\nsigners = { site-b = [] }", "keys.signers.site-b", "list of them"),
        ('role = "appliance"', 'role = "standby"', "keys.signers", "each node that"),
        ("[keys]", '[standby]\naccept_stores = "always"\n[keys]', "standby.accept_stores", "role"),
    ],
)  # fmt: skip
def test_loads_names_the_fault(old: str, new: str, place: str, words: str) -> None:
    (fault,) = faults(changed((old, new)))
    assert fault.startswith(f"{place}: ")
    assert words in fault


def test_a_peer_with_commit_or_destination_needs_host_and_port() -> None:
    without = ('host = "192.0.2.10"\nport = 104', "")
    found = faults(changed(without))
    assert [fault.partition(":")[0] for fault in found] == [
        "dicom.peers[0].host",
        "dicom.peers[0].port",
    ]
    reports = 'commit_host = "192.0.2.11"\ncommit_port = 104'
    only_commit = (', "commit", "destination"', ', "commit"')
    config = loads(changed((without[0], reports), only_commit))
    assert config.dicom.peers[0].report_address() == ("192.0.2.11", 104)


def test_two_peers_may_share_a_title_but_not_an_address_or_a_destination() -> None:
    shared = (
        '[[dicom.peers]]\nae_title = "PACS1"\naddresses = ["192.0.2.10/32"]\n'
        'host = "192.0.2.11"\nport = 104\nallow = ["echo", "destination"]\n[cache]'
    )
    found = faults(changed(("[cache]", shared)))
    assert [fault.partition(":")[0] for fault in found] == [
        "dicom.peers[2].addresses",
        "dicom.peers[2].allow",
    ]
    apart = shared.replace("192.0.2.10/32", "192.0.2.11/32").replace(', "destination"', "")
    assert len(loads(changed(("[cache]", apart))).dicom.peers) == 3


def test_windows_that_overlap_past_midnight_are_found() -> None:
    more = (
        '[[cloud.throttle.windows]]\ndays = ["sun"]\nfrom = "22:00"\nto = "09:00"\n'
        'rate = "off"\n[keys]'
    )
    (fault,) = faults(changed(("[keys]", more)))
    assert fault.startswith("cloud.throttle.windows[1]: overlaps windows[0], first on mon 08:00")
    assert loads(changed(("[keys]", more.replace("09:00", "08:00"))))


def test_throttle_rate_at_follows_the_timetable() -> None:
    throttle = loads(WHOLE).cloud.throttle
    monday, saturday = datetime(2026, 11, 23), datetime(2026, 11, 28)  # noqa: DTZ001 - local time
    assert throttle.rate_at(monday.replace(hour=7, minute=59)) == 6_250_000
    assert throttle.rate_at(monday.replace(hour=8)) == 1_250_000
    assert throttle.rate_at(monday.replace(hour=17, minute=59)) == 1_250_000
    assert throttle.rate_at(monday.replace(hour=18)) == 6_250_000
    assert throttle.rate_at(saturday.replace(hour=12)) == 6_250_000


def test_peer_calling_prefers_its_own_title_then_the_longest_network() -> None:
    dicom = loads(WHOLE).dicom
    assert dicom.peer_calling("PACS1", "192.0.2.10") is dicom.peers[0]
    assert dicom.peer_calling("PACS1", "::ffff:192.0.2.10") is dicom.peers[0]
    assert dicom.peer_calling("PACS1", "192.0.2.11") is dicom.peers[1]
    assert dicom.peer_calling("CT1", "2001:db8::1%eth0") is dicom.peers[1]
    assert dicom.peer_calling("CT1", "198.51.100.1") is None


def test_destination_is_a_peer_that_may_be_sent_to() -> None:
    dicom = loads(WHOLE).dicom
    assert dicom.destination("PACS1") is dicom.peers[0]
    assert dicom.destination("*") is None
    assert dicom.destination("CT1") is None


def test_a_config_made_in_code_is_checked_too() -> None:
    config = loads(WHOLE)
    peer = Peer(ae_title="CT1", allow=("store",))
    parts = {name: getattr(config, name) for name in Config.model_fields}
    parts["dicom"] = config.dicom.model_copy(update={"peers": (peer,)})
    with pytest.raises(ConfigurationError) as raised:
        Config(**parts)
    assert raised.value.faults[0].startswith("dicom.peers[0].addresses:")


def test_to_toml_writes_a_file_that_makes_the_same_configuration() -> None:
    config = loads(WHOLE)
    written = to_toml(config)
    assert tomllib.loads(written)["packs"]["target_size"] == "64 MiB"
    assert loads(written) == config


def test_a_standby_that_never_writes_needs_no_recovery_and_a_signer_may_have_several_keys() -> None:
    """One text or a list; `writes` says whether the node has a ledger of its own."""
    keys = [f"azekura-sign1{letter * 58}" for letter in "qp"]
    signers = f'[keys]\nsigners = {{ site-b = "{keys[0]}", site-c = {keys} }}'
    standby = (('role = "appliance"', 'role = "standby"'), ("[keys]", signers))
    config = loads(changed(*standby, (f'recovery = ["{RECOVERY}"]', "")))
    assert not config.writes
    assert config.keys.signers == {"site-b": (keys[0],), "site-c": tuple(keys)}
    assert loads(to_toml(config)).keys.signers == config.keys.signers
    accepts = ("[web]", '[standby]\naccept_stores = "when-silent"\n[web]')
    (fault,) = faults(changed(*standby, accepts, (f'recovery = ["{RECOVERY}"]', "")))
    assert fault.startswith("keys.recovery: ")

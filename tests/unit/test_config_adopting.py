"""What a standby makes of the sites' published configurations, and its own file on top."""

import json

from appliance.config.adopting import adopt, published_of
from appliance.config.model import Config
from tests.support.published_sites import A, config_of, peer, site, standby


def titles(config: Config) -> list[str]:
    return [each.ae_title for each in config.dicom.peers]


def test_a_standby_without_a_file_of_the_site_is_called_as_the_site() -> None:
    """Titles, peers, issuer and classes come from the site, unchanged."""
    extra = 'ae_titles = ["AZEKURA", "OLDPACS"]\nextra_sop_classes = ["1.2.3.4"]\n'
    text = extra + peer(
        "PACS1", "192.0.2.1/32", host="192.0.2.1", port=104, commit_deadline="2 d",
        allow=["store", "find", "commit", "destination"], character_set="\\ISO 2022 IR 87",
    )  # fmt: skip
    config, origins, conflicts = adopt(standby(), {"site-a": site(text)})
    assert conflicts == []
    assert config.dicom.ae_titles == ("AZEKURA", "OLDPACS")
    assert config.dicom.extra_sop_classes == ("1.2.3.4",)
    assert config.dicom.peers == config_of(text).dicom.peers
    assert origins == [
        ("dicom.ae_titles", "AZEKURA", "site-a"),
        ("dicom.ae_titles", "OLDPACS", "site-a"),
        ("dicom.extra_sop_classes", "1.2.3.4", "site-a"),
        ("dicom.peers", "PACS1", "site-a"),
    ]


def test_what_the_own_file_says_wins() -> None:
    """An own peer replaces the sites' of that title; own titles and issuer come first."""
    own = 'ae_title = "CLOUD"\nissuer = "OWN"\n' + peer("PACS1", "203.0.113.9/32")
    config, _, conflicts = adopt(standby(own), {"site-a": site(A)})
    assert conflicts == []
    assert config.dicom.ae_titles == ("CLOUD", "AZEKURA")
    assert config.dicom.ae_title == "CLOUD"
    assert config.dicom.issuer == "OWN"
    assert titles(config) == ["PACS1", "CT"]
    assert config.dicom.peer_calling("PACS1", "203.0.113.9") is not None
    assert config.dicom.peer_calling("PACS1", "192.0.2.1") is None


def test_peers_of_two_sites_keep_their_sites_issuer() -> None:
    """A patient number means the same at the standby as at the site that gives it."""
    b = 'issuer = "B"\n' + peer("MR", "10.2.0.0/16") + peer("US", "10.2.3.0/24", issuer="US-B")
    config, _, conflicts = adopt(standby(), {"site-b": site(b), "site-a": site(A)})
    assert conflicts == []
    assert {each.ae_title: each.issuer for each in config.dicom.peers} == {
        "PACS1": "A", "CT": "A", "MR": "B", "US": "US-B",
    }  # fmt: skip


def test_of_two_sites_that_contradict_each_other_the_first_counts_and_it_is_said() -> None:
    """Same title: from other addresses both are taken, from the same one only the first is."""
    b = peer("PACS1", "192.0.2.1/32", max_associations=3) + peer("CT", "10.2.0.0/16")
    config, _, conflicts = adopt(standby(), {"site-b": site(b), "site-a": site(A)})
    (conflict,) = conflicts
    assert "'PACS1' of site-b" in conflict
    assert "peers[" not in conflict
    assert titles(config) == ["PACS1", "CT", "CT"]
    assert config.dicom.peers[0].max_associations == 16


def test_the_same_peer_of_two_sites_is_one() -> None:
    """Sites that agree are no conflict."""
    text = peer("*", "10.0.0.0/8")
    config, _, conflicts = adopt(standby(), {"site-a": site(text), "site-b": site(text)})
    assert (titles(config), conflicts) == (["*"], [])


def test_a_peer_that_cannot_be_served_here_is_left_out_and_the_rest_is_taken() -> None:
    """Over TLS without a certificate here, or with words that this release does not know."""
    published = site(A)
    documents = [
        {**published.peers[0], "tls": True},
        {**published.peers[1], "allow": ["teleport"]},
        {**published.peers[1], "of_a_later_release": 1},
    ]
    config, _, conflicts = adopt(standby(), {"site-a": published._replace(peers=documents)})
    assert titles(config) == ["CT"]
    assert ["'CT'" in conflicts[0], "'PACS1'" in conflicts[1]] == [True, True]


def test_what_is_published_holds_no_secret_and_no_path() -> None:
    """Peers name neither keys nor files."""
    text = json.dumps(published_of(config_of(A).dicom))
    assert "/etc" not in text
    assert "key" not in text

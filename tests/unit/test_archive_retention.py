"""How long what is locked: by the first rule that fits, and what names packs for the longest."""

import pytest

from appliance.archive.ledger_entry import entry_key
from appliance.archive.retention import Retention, fits
from appliance.config.load import loads
from appliance.config.model import RetentionRule
from appliance.foundation.errors import ConfigurationError
from tests.support.archive_box import DAY_S, NODE, Box, sample
from tests.support.index_facts import instance
from tests.support.keeping import received


def rule(days: float, **conditions) -> RetentionRule:
    return RetentionRule(retention=f"{days} d", **conditions)


def days_of(box: Box, key: str) -> float:
    until = box.store.head(key).lock.until
    return (until - box.clock.now()).total_seconds() / DAY_S


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"modalities": ["CT", "MR"]}, True),
        ({"modalities": ["MR"]}, False),
        ({"calling_ae_titles": ["CT1"]}, True),
        ({"called_ae_titles": ["CT1"]}, False),
        ({"modalities": ["CT"], "called_ae_titles": ["AZEKURA"]}, True),
        ({"modalities": ["CT"], "calling_ae_titles": ["CT2"]}, False),
    ],
)
def test_a_rule_fits_when_all_its_conditions_do(conditions, expected) -> None:
    assert fits(rule(7, **conditions), instance()) is expected


def test_the_first_rule_counts_and_a_pack_is_kept_as_its_longest(box: Box) -> None:
    rules = (rule(7, modalities=["CT"]), rule(90, modalities=["CT", "MG"]))
    retention = Retention(box.store, "compliance", 30 * DAY_S, box.clock, rules)
    ct, mg, other = (instance(Modality=each) for each in ("CT", "MG", "US"))
    assert retention.seconds_for([ct]) == 7 * DAY_S
    assert retention.seconds_for([ct, other]) == 30 * DAY_S
    assert retention.seconds_for([ct, other, mg]) == 90 * DAY_S
    assert retention.seconds_for([]) == 30 * DAY_S


def test_packs_are_locked_by_rule_and_what_names_them_for_the_longest(box: Box) -> None:
    """A ledger entry outlives every pack that it names, whichever rule that falls under."""
    rules = (rule(7, modalities=["CT"]), rule(90, modalities=["MG"]))
    box.retention = Retention(box.store, "compliance", 30 * DAY_S, box.clock, rules)
    (pack_id,) = received(box, sample(1, 1))
    cloud = box.pack(pack_id).cloud
    assert days_of(box, cloud.key) == pytest.approx(7, abs=0.01)
    assert days_of(box, entry_key(NODE, cloud.sequence)) == pytest.approx(90, abs=0.01)


def test_a_rule_without_a_condition_is_a_fault() -> None:
    text = """
        [node]
        name = "a"
        demo = true
        data_dir = "/x"
        [cache]
        capacity = "8 GiB"
        [cloud]
        region = "x"
        bucket = "bucket"
        [[cloud.retention_rules]]
        retention = "7 y"
    """
    with pytest.raises(ConfigurationError) as raised:
        loads(text)
    assert any("fits everything" in fault for fault in raised.value.faults)
    config = loads(text + 'modalities = ["MG"]\n')
    assert config.cloud.longest_retention_s == 7 * 365.25 * DAY_S

"""The tables of the configuration about looking after what is stored: alarms, drill, scrub.

Owns their keys, types, defaults and meanings, as `model` does of all others.
"""

from typing import Annotated

from pydantic import Field

from appliance.config.table import DAY_S, HOUR_S, MIB, YEAR_S, Table
from appliance.config.values import Count, DurationS, Fraction, SizeBytes


class Alarms(Table):
    """From where on the backlog is a problem that `azekura status` shows until it is over."""

    time_to_full_s: Annotated[DurationS, Field(ge=60)] = Field(
        4 * HOUR_S,
        alias="time_to_full",
        description="The disk will be full, and instances refused, in less than this.",
    )
    time_to_drain_s: Annotated[DurationS, Field(ge=60)] = Field(
        3 * DAY_S,
        alias="time_to_drain",
        description="The backlog needs longer than this, counted from the return of the line.",
    )
    pending_age_s: Annotated[DurationS, Field(ge=60)] = Field(
        1 * HOUR_S,
        alias="pending_age",
        description="What has waited longest to reach the bucket has waited longer than this.",
    )
    link_down_s: Annotated[DurationS, Field(ge=1)] = Field(
        15 * 60.0, alias="link_down", description="The line has been down for longer than this."
    )
    room: Fraction = Field(
        0.10,
        description="Less than this part of what packs may use is left for new instances, "
        "with everything evicted that can be.",
    )


class Drill(Table):
    """The restore drill that the uplink holds by itself: a sample is restored and compared."""

    every_s: Annotated[DurationS, Field(ge=DAY_S, le=YEAR_S)] = Field(
        30 * DAY_S,
        alias="every",
        description="How long after the last drill the next is held. One that is late by more "
        "than a tenth of this is a problem.",
    )
    studies: Annotated[Count, Field(ge=1, le=1000)] = Field(
        20, description="How many studies a drill restores, old and new ones."
    )
    daily_bytes: Annotated[SizeBytes, Field(ge=1 * MIB)] = Field(
        10 * 1024 * MIB,
        alias="daily",
        description="How much a drill that the uplink holds reads from the bucket in a day; it "
        "goes on the next day.",
    )


class Scrub(Table):
    """Rereading what is stored, before anybody needs it."""

    period_s: Annotated[DurationS, Field(ge=DAY_S, le=YEAR_S)] = Field(
        30 * DAY_S,
        alias="period",
        description="Within this time every pack on this disk is read again and checked by hash.",
    )
    cloud_sample_per_day: Annotated[Count, Field(ge=0, le=100_000)] = Field(
        20,
        description="How many packs in the bucket are proved a day, by chance; every tenth of them "
        "is read back whole and opened.",
    )
    cloud_requests_per_day: Annotated[Count, Field(ge=0, le=100_000)] = Field(
        2000, description="How many requests a day that may make."
    )

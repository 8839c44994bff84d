"""From a path to the instances that it names, and where each of them is found."""

from collections.abc import Generator, Sequence
from typing import Protocol

from aiohttp import web

from appliance.archive.query import Query
from appliance.archive.retrieval import Opened, Retrievable
from appliance.dicom.attributes import Level
from appliance.dicom.identifier import Identifier
from appliance.foundation.errors import AzekuraError, NotFound
from appliance.web.access import CALLER
from appliance.web.paths import DICOM_WEB, uids_of
from appliance.web.search_parameters import SERIES_UID, SOP_UID

STUDY_PATH = f"{DICOM_WEB}/studies/{{study}}"
SERIES_PATH = f"{STUDY_PATH}/series/{{series}}"
INSTANCE_PATH = f"{SERIES_PATH}/instances/{{instance}}"
EVERY_PATH = (STUDY_PATH, SERIES_PATH, INSTANCE_PATH)


class Selector(Protocol):
    """What a retrieve needs to know of the archive before it opens anything."""

    def select(self, query: Query) -> Sequence[Retrievable]:
        """Return the served instances that the unique keys name."""


class Opener(Protocol):
    """What opens instances."""

    def open_all(
        self, wanted: Sequence[Retrievable]
    ) -> Generator[tuple[Retrievable, Opened | AzekuraError], None, None]:
        """Yield each instance, or why it can't be had, as it comes to hand."""


def query_of(request: web.Request) -> Query:
    """Return the query that a path of study, series or instance is; BadRequest."""
    return query_of_uids(uids_of(request), request[CALLER].ae_title)


def query_of_uids(uids: dict[int, str], ae_title: str) -> Query:
    """Return the query for the instances that unique keys name."""
    if SOP_UID in uids:
        level = Level.INSTANCE
    else:
        level = Level.SERIES if SERIES_UID in uids else Level.STUDY
    identifier = Identifier(level.value, {**uids}, "", list(uids), [])
    return Query("STUDY", level.value, identifier, True, ae_title)


def selected(selector: Selector, query: Query) -> Sequence[Retrievable]:
    """Return the instances of a query; NotFound when nothing is served under its UIDs."""
    found = selector.select(query)
    if not len(found):
        raise NotFound("retrieve", cause="nothing is served under these UIDs")
    return found


def opened_one(opener: Opener, wanted: Sequence[Retrievable]) -> tuple[Retrievable, Opened]:
    """Return the first instance, at hand; the error when it can't be had."""
    instances = opener.open_all(wanted[:1])
    try:
        instance, opened = next(instances)
    finally:
        instances.close()
    if isinstance(opened, AzekuraError):
        raise opened
    return instance, opened


def location_of(base: str, instance: Retrievable) -> str:
    """Return the URL of an instance."""
    return (
        f"{base}/studies/{instance.study_instance_uid}/series/{instance.series_instance_uid}"
        f"/instances/{instance.sop_instance_uid}"
    )

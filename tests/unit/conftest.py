"""Fixtures of the unit tests."""

from tests.support.archive_box import box  # noqa: F401

"""What every test starts from: the same draws in each run, and no setting of the machine's user."""

import os

import pytest
from hypothesis import HealthCheck, settings

# A deadline measures the machine, not the code. A run that can't be repeated proves little.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# HYPOTHESIS_PROFILE=search looks for new examples instead.
settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

_FOREIGN_PREFIXES = ("AWS_", "AZEKURA_")
_FOREIGN_NAMES = ("CREDENTIALS_DIRECTORY", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide credentials, proxies and configuration of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN_PREFIXES) or name in _FOREIGN_NAMES:
            monkeypatch.delenv(name)

"""What every table of the configuration file is made of, and the units its limits are in.

Owns how a table is read: which names count, and that an unknown key is refused.
"""

from pydantic import BaseModel, ConfigDict

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
YEAR_S = 365.25 * DAY_S
MIB = 2**20


class Table(BaseModel):
    """A table of the file. In the file a key is the alias; in code both names serve."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=False,
    )

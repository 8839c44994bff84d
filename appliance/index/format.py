"""The stamp of the format version in a generation."""

from appliance.foundation.errors import UnsupportedFormat
from appliance.index.environment import Environment, Transaction
from appliance.index.schema import (
    FORMAT_KEY,
    FORMAT_VERSION,
    REBUILD_HINT,
    Table,
    damaged,
    decode_number,
    encode,
    open_value,
    seal_value,
)


def stamp_or_check(environment: Environment) -> None:
    """Stamp an empty environment with our format version; UnsupportedFormat if it has another."""
    table = environment.tables[Table.META]
    with Transaction(environment, write=False) as transaction:
        value = transaction.get(FORMAT_KEY, db=table)
        records = environment.entries(Table.META, transaction)
    if value is not None:
        version = decode_number(open_value(Table.META, FORMAT_KEY, value))
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(
                "open the index", environment.directory, f"format {version}", REBUILD_HINT
            )
    elif records:
        raise damaged("meta", "the format version is missing")
    else:
        with Transaction(environment, write=True) as transaction:
            transaction.put(FORMAT_KEY, seal_value(FORMAT_KEY, encode(FORMAT_VERSION)), db=table)

"""The schema and the generated page say what the model says."""

import os

from appliance.config.describe import describe, schema
from appliance.config.load import table_of
from appliance.config.model import Config, Table

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _tables(model: type[Table] = Config) -> list[type[Table]]:
    inner = [found for info in model.model_fields.values() if (found := table_of(info))]
    return [model, *(table for found in inner for table in _tables(found))]


def test_every_field_has_a_description() -> None:
    for table in _tables():
        for name, info in table.model_fields.items():
            assert info.description, f"{table.__name__}.{name}"


def test_configuration_page_is_in_step_with_the_model() -> None:
    with open(os.path.join(ROOT, "docs", "configuration.md"), encoding="utf-8") as file:
        assert file.read() == describe(), (
            "run: python -m appliance.config.describe > docs/configuration.md"
        )


def test_configuration_page_has_every_key() -> None:
    page = describe()
    for table in _tables():
        for name, info in table.model_fields.items():
            if table_of(info) is None:
                assert f"| `{info.alias or name}` |" in page


def test_schema_knows_the_keys_of_the_file_and_refuses_others() -> None:
    found = schema()
    assert set(found["properties"]) == set(Config.model_fields)
    cache = found["$defs"]["Cache"]
    assert set(cache["properties"]) == {"capacity", "high_water", "low_water"}
    assert cache["additionalProperties"] is False
    assert "ae_title" in found["$defs"]["Dicom"]["properties"]
    assert found["$defs"]["Cache"]["properties"]["capacity"]["type"] == "string"

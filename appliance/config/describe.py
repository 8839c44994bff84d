"""What the configuration looks like from outside: JSON schema, documentation, and the file itself.

Owns docs/configuration.md's text and the TOML that `config show` prints. Everything is drawn from
the model, so that neither can say what the model does not.
"""

import json
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from appliance.config.load import is_list, table_of, written_as
from appliance.config.model import Config, Dicom
from appliance.config.table import Table
from appliance.config.values import Written, write_duration, write_rate, write_size

_INTRODUCTION = """\
# The configuration file

One TOML file, `/etc/azekura/azekura.toml` unless `--config` names another. A key that is not
listed here is refused, and `azekura config check` reports every fault at once. `azekura config
show` prints the file with all defaults filled in. No secret belongs into it: identities and signing
keys are files or systemd credentials, and the bucket's credentials come from the usual AWS places.

This page is written by `python -m appliance.config.describe > docs/configuration.md`.

Sizes are written like `64 MiB` or `2 TB`, durations like `10 s`, `5 min`, `24 h`, `30 d` or `5 y`,
rates like `50 Mbit/s` or `6 MB/s`. A value's limits are shown behind its type.
"""
_SHORT_FORM = "The short form of `ae_titles` for a single title."


def schema() -> dict[str, Any]:
    """Return the JSON schema of the file."""
    found = Config.model_json_schema(by_alias=True)
    # `ae_title` is the short form of `ae_titles` that the model rewrites before it validates.
    title = {**found["$defs"]["Dicom"]["properties"]["ae_titles"]["items"]}
    title["description"] = _SHORT_FORM
    found["$defs"]["Dicom"]["properties"]["ae_title"] = title
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return found


def describe() -> str:
    """Return docs/configuration.md: every key with its type, default and meaning."""
    sections = [_INTRODUCTION]
    for heading, model in _tables(Config, ""):
        rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
        rows += [
            _row(_key(name, info), info)
            for name, info in model.model_fields.items()
            if table_of(info) is None
        ]
        if model is Dicom:
            rows.insert(2, f"| `ae_title` | AE title | none | {_SHORT_FORM} |")
        sections.append(f"## {heading}\n\n{' '.join((model.__doc__ or '').split())}\n")
        sections.append("\n".join(rows) + "\n")
    return "\n".join(sections)


def to_toml(config: Config) -> str:
    """Return the file that makes this configuration, every default written out."""
    lines: list[str] = []
    _write_table(config.model_dump(by_alias=True, exclude_none=True), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _tables(model: type[Table], path: str) -> Iterator[tuple[str, type[Table]]]:
    for name, info in model.model_fields.items():
        inner = table_of(info)
        if inner is None:
            continue
        place = f"{path}.{_key(name, info)}" if path else _key(name, info)
        yield f"`[[{place}]]`" if is_list(info) else f"`[{place}]`", inner
        yield from _tables(inner, place)


def _key(name: str, info: FieldInfo) -> str:
    return info.alias or name


def _row(key: str, info: FieldInfo) -> str:
    description = (info.description or "").replace("|", "\\|")
    return f"| `{key}` | {_type(info)} | {_default(info)} | {description} |"


def _type(info: FieldInfo) -> str:
    written = written_as(info)
    kind = written.kind if written else "table"
    if kind == "one of":
        several = "some of " if is_list(info) else "one of "
        return several + ", ".join(f"`{choice}`" for choice in _choices(info.annotation))
    if typing.get_origin(info.annotation) is dict:
        return "table of node names, each with its public key or a list of them"
    return f"list of {kind}" if is_list(info) else kind + _limits(info, kind)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    inner = (part for part in typing.get_args(annotation) if not isinstance(part, Written))
    return [choice for part in inner for choice in _choices(part)]


def _limits(info: FieldInfo, kind: str) -> str:
    low = next((m.ge for m in info.metadata if getattr(m, "ge", None) is not None), None)
    high = next((m.le for m in info.metadata if getattr(m, "le", None) is not None), None)
    if low is None or high is None or kind == "time of day":
        return ""
    return f", {_limit(low, kind)} to {_limit(high, kind)}"


def _limit(limit: Any, kind: str) -> str:
    if kind == "size":
        return write_size(limit)
    return write_duration(limit) if kind == "duration" else f"{limit:g}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "*needed*"
    written = written_as(info)
    kind = written.kind if written else "table"
    default = info.default
    if kind == "rate":
        default = write_rate(default)
    elif default is None:
        return "none"
    elif kind == "size":
        default = write_size(default)
    elif kind == "duration":
        default = write_duration(default)
    return f"`{_value(default)}`"


def _write_table(table: dict[str, Any], path: str, lines: list[str]) -> None:
    scalars = {key: value for key, value in table.items() if not _is_tabular(value)}
    lines.extend(f"{key} = {_value(value)}" for key, value in scalars.items())
    for key, value in table.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            lines.append(f"\n[{place}]")
            _write_table(value, place, lines)
        elif isinstance(value, list | tuple) and _is_tabular(value):
            for item in value:
                lines.append(f"\n[[{place}]]")
                _write_table(item, place, lines)


def _is_tabular(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and bool(value)


def _value(value: Any) -> str:
    """Return a value as TOML writes it; JSON's strings, numbers and booleans are TOML's too."""
    if isinstance(value, dict):
        return "{}" if not value else json.dumps(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    print(describe(), end="")  # noqa: T201 - this is how the page is written

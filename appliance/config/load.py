"""Reading the one TOML file: the whole of its faults at once, or a Config.

Owns the way from text to `Config` and from pydantic's errors to lines for an operator. A fault line
never repeats a value of `keys`, which may be a secret in the wrong place.
"""

import copy
import difflib
import tomllib
import typing
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from appliance.config import checks
from appliance.config.checks import Finding, Place
from appliance.config.model import Config, long_form
from appliance.config.table import Table
from appliance.config.values import FROM_FILE, Written, write_duration, write_size
from appliance.foundation.errors import ConfigurationError

FILE_BYTES_MAX = 1 << 20
# A missing table reveals its missing keys only in the next round, three levels deep at most.
_ROUNDS_MAX = 5
_HINT = "`azekura config schema` lists every key, and docs/configuration.md explains each"


def load(path: str) -> Config:
    """Return the configuration in the file; ConfigurationError lists every fault of it."""
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as cause:
        raise ConfigurationError(
            path,
            (f"{path}: {cause.strerror or cause}",),
            "Name the file with --config, or begin with the example in README.md",
        ) from cause
    if len(content) > FILE_BYTES_MAX:
        raise ConfigurationError(path, (f"{path}: is larger than {FILE_BYTES_MAX} bytes",))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise ConfigurationError(path, (f"{path}: is not UTF-8 text",)) from cause
    return loads(text, subject=path)


def loads(text: str, subject: str = "text") -> Config:
    """Return the configuration in the text; ConfigurationError lists every fault of it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise ConfigurationError(subject, (f"not TOML: {cause}",), _HINT) from cause
    config, findings = _validate(data)
    if config is None or findings:
        raise ConfigurationError(subject, _named(findings, data), _HINT)
    return config


def _validate(data: dict[str, Any]) -> tuple[Config | None, list[Finding]]:
    """Return a Config, if one can be made, and the faults: of values, and of how they fit together.

    Faulty values are replaced by defaults or examples until the whole makes a Config, whose checks
    then run; what was concluded from a replaced value is left out.
    """
    healed = copy.deepcopy(data)
    if "dicom" in healed:
        healed["dicom"] = long_form(healed["dicom"])
    findings: dict[Place, Finding] = {}
    for _ in range(_ROUNDS_MAX):
        try:
            config = Config.model_validate(healed, by_alias=True, by_name=False, context=FROM_FILE)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            fitting = [f for f in checks.check(config) if not _tainted(f, findings)]
            return config, [*findings.values(), *fitting]
        for detail in details:
            place = tuple(detail["loc"])
            if not any(found[: len(place)] == place for found in findings):
                findings[place] = Finding(place, _sentence(detail))
        # Later list items first: removing one moves those behind it.
        for detail in sorted(details, key=lambda detail: _removal_order(detail["loc"])):
            _heal(healed, tuple(detail["loc"]), detail["type"])
    return None, list(findings.values())


def _removal_order(place: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(-step if isinstance(step, int) else 0 for step in place)


def _heal(data: dict[str, Any], place: Place, kind: str) -> None:
    parent: Any = data
    for step in place[:-1]:
        try:
            parent = parent[step]
        except (KeyError, IndexError, TypeError):
            return
    last = place[-1]
    if kind == "missing" and isinstance(parent, dict):
        parent[last] = _example(place)
    elif isinstance(parent, dict):
        parent.pop(last, None)
    elif isinstance(parent, list) and isinstance(last, int) and last < len(parent):
        info = field_at(place)
        if info is not None and table_of(info) is not None:
            parent[last] = {}
            return
        del parent[last]
        if not parent:
            _heal(data, place[:-1], "emptied")


def _example(place: Place) -> Any:
    info = field_at(place)
    if info is None:
        return {}
    written = written_as(info)
    if written is None:
        return {}
    return [written.example] if is_list(info) else written.example


def field_at(place: Place) -> FieldInfo | None:
    """Return the field that a place in the file belongs to, None for an unknown key."""
    model: type[Table] = Config
    info: FieldInfo | None = None
    for step in place:
        if isinstance(step, int):
            continue
        info = next(
            (found for name, found in model.model_fields.items() if step == (found.alias or name)),
            None,
        )
        if info is None:
            return None
        model = table_of(info) or model
    return info


def table_of(info: FieldInfo) -> type[Table] | None:
    """Return the table that a field holds, alone, optionally or in a list; None for a value."""
    for found in _parts(info.annotation):
        if isinstance(found, type) and issubclass(found, Table):
            return found
    return None


def _parts(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    return [annotation, *(part for argument in arguments for part in _parts(argument))]


def written_as(info: FieldInfo) -> Written | None:
    """Return how the field's values, or its list's items, are written; None for a table."""
    inner = (
        mark
        for part in _parts(info.annotation)
        if typing.get_origin(part) is typing.Annotated
        for mark in typing.get_args(part)[1:]
    )
    marks = (mark for mark in (*info.metadata, *inner) if isinstance(mark, Written))
    return next(marks, None)


def is_list(info: FieldInfo) -> bool:
    """Whether the field holds a list."""
    return typing.get_origin(info.annotation) is tuple


def _tainted(finding: Finding, faulty: dict[Place, Finding]) -> bool:
    """Whether a value from which the finding was concluded is itself faulty.

    A table that is missing is as good as an empty one: its defaults hold.
    """
    for source in (finding.place, *finding.concluded_from):
        for place, fault in faulty.items():
            shorter = min(len(source), len(place))
            if source[:shorter] == place[:shorter] and not _is_missing_table(fault):
                return True
    return False


def _is_missing_table(finding: Finding) -> bool:
    return len(finding.place) == 1 and finding.message == _MISSING_TABLE


_MISSING_TABLE = "is missing; the table is needed"
_SENTENCES = {
    "too_short": "may not be empty",
    "string_too_short": "may not be empty",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "model_attributes_type": "must be a table",
    "tuple_type": "must be a list, in brackets",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def _sentence(detail: ErrorDetails) -> str:
    """Return what is wrong with one value and how to write it."""
    place: Place = tuple(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    info = field_at(place)
    written = written_as(info) if info else None
    example = f"; write it like '{written.example}'" if written and written.example else ""
    if kind == "missing":
        sentence = "is missing" + example if example else _MISSING_TABLE
    elif kind == "extra_forbidden":
        sentence = "is no key of this table" + _suggestion(place)
    elif kind == "value_error":
        sentence = str(context["error"])
    elif kind == "literal_error":
        sentence = f"must be {context['expected']}"
    elif kind in _LIMITS:
        words, key = _LIMITS[kind]
        sentence = f"must be {words} {_limit(written, context[key])}"
    elif kind in _SENTENCES:
        sentence = _SENTENCES[kind]
    elif written is not None:
        sentence = f"must be a {written.kind}" + example
    else:
        sentence = detail["msg"]
    return sentence


def _limit(written: Written | None, limit: float) -> str:
    """Return a limit in the words in which the value is written."""
    if written is not None and written.kind == "size":
        return write_size(int(limit))
    if written is not None and written.kind == "duration":
        return write_duration(limit)
    return f"{limit:g}"


def _suggestion(place: Place) -> str:
    if place == ("dicom", "ae_title"):
        return ", since ae_titles is there; one of them is enough"
    model: type[Table] = Config
    for end in range(1, len(place)):
        info = field_at(place[:end])
        model = (table_of(info) if info else None) or model
    known = [info.alias or name for name, info in model.model_fields.items()]
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; it knows {', '.join(known)}"


def _named(findings: list[Finding], data: dict[str, Any]) -> tuple[str, ...]:
    """Return the lines of the findings, saying which peer a numbered one is.

    Numbers count from zero, as paths into JSON do; people count from one.
    """
    dicom = data.get("dicom")
    peers = dicom.get("peers") if isinstance(dicom, dict) else None
    lines = []
    for finding in findings:
        line = str(finding)
        if isinstance(dicom, dict) and "ae_titles" not in dicom:
            line = line.replace("dicom.ae_titles[0]:", "dicom.ae_title:")
        if finding.place[:2] == ("dicom", "peers") and isinstance(peers, list):
            number = finding.place[2] if len(finding.place) > 2 else None
            peer = peers[number] if isinstance(number, int) and number < len(peers) else None
            title = peer.get("ae_title") if isinstance(peer, dict) else None
            line += f" (the peer '{title}')" if isinstance(title, str) else ""
        lines.append(line)
    return tuple(lines)

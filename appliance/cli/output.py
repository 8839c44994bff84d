"""What a command says: results on standard output, errors and progress on standard error.

Owns the two forms of every answer: for people, and with --json one JSON document for programs.
Must not decide anything. Rich is loaded only when something is drawn.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from appliance.foundation.errors import AzekuraError, ConfigurationError


class Output:
    """The answer of one command. `as_json` is what --json asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, document: Any, text: str) -> None:
        """Print the result: the document with --json, else the text."""
        if self.as_json:
            print(json.dumps(document, ensure_ascii=False, indent=2))
        elif text:
            print(text)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Print rows: a list of objects with --json, else aligned columns under their names."""
        if self.as_json:
            print(json.dumps(list(rows), ensure_ascii=False, indent=2))
            return
        cells = [[str(column).upper() for column in columns]]
        cells += [
            ["" if row.get(column) is None else str(row[column]) for column in columns]
            for row in rows
        ]
        widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
        for line in cells:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(padded).rstrip())

    def error(self, error: AzekuraError) -> None:
        """Print an error on standard error: a sentence and its hint, or a JSON document."""
        if self.as_json:
            self._problem(_document(error))
            return
        if isinstance(error, ConfigurationError):
            print(f"azekura: {error.operation} ({error.subject})", file=sys.stderr)
            for fault in error.faults:
                print(f"  {fault}", file=sys.stderr)
            if error.hint:
                print(f"{error.hint}.", file=sys.stderr)
            return
        print(f"azekura: {error}", file=sys.stderr)

    def usage_error(self, message: str, hint: str) -> None:
        """Print what makes no sense in the command line."""
        if self.as_json:
            self._problem({"kind": "UsageError", "operation": message, "hint": hint})
        else:
            print(f"azekura: {message} {hint}".rstrip(), file=sys.stderr)

    def _problem(self, document: dict[str, Any]) -> None:
        print(json.dumps({"error": document}, ensure_ascii=False, indent=2), file=sys.stderr)

    @contextlib.contextmanager
    def progress(self, label: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Show progress over a block when a terminal is there; yields `advance(amount)`.

        `total` is in the unit of the amounts, None when it is unknown.
        """
        if self.as_json or not sys.stderr.isatty():
            yield lambda _amount: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(label, total=total)
            yield lambda amount: shown.advance(task, amount)


def _document(error: AzekuraError) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": type(error).__name__,
        "operation": error.operation,
        "subject": error.subject,
        "cause": error.cause,
        "hint": error.hint,
        "retry": error.retry,
    }
    if isinstance(error, ConfigurationError):
        document["faults"] = list(error.faults)
    return document

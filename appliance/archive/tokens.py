"""Bearer tokens: who may use DICOMweb by showing a secret, and for what.

Owns `state/tokens.json`, written by the command, read by the web daemon. Invariants:
- Only the sha256 of a token is kept. A token has 256 random bits, so nothing slower is needed.
- A name is one that may stand as a calling AE title: what a token stores says so.
- What is presented is compared with every token in constant time.
- A token that was revoked is refused from the next look at the file on, LOOK_S later at most.
"""

import hashlib
import hmac
import os
import re
import secrets
import threading

import msgspec

from appliance.archive.layout import Layout
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import Damaged, NotFound, UsageError
from appliance.foundation.files import FileLock, FileSystem

TOKENS_MAX = 256
TOKEN_BYTES = 32
LOOK_S = 1.0
PREFIX = "azk_"
ALLOWED = ("read", "store")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}")
_OPERATION = "keep tokens"


class Token(msgspec.Struct, frozen=True):
    """What is kept of one token; `allow` has words of ALLOWED, `sha256` is in hex."""

    name: str
    sha256: str
    allow: tuple[str, ...]
    created_at: str


class Tokens:
    """The file of tokens; any process may change it, under its lock."""

    def __init__(self, files: FileSystem, clock: Clock, layout: Layout) -> None:
        self._files = files
        self._clock = clock
        self.path = os.path.join(layout.state, "tokens.json")

    def new(self, name: str, allow: tuple[str, ...]) -> str:
        """Make a token and return it: it is never shown again. UsageError."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                _OPERATION, name, "a name has 1 to 16 letters, digits, dots, hyphens, underscores"
            )
        unknown = [each for each in allow if each not in ALLOWED]
        if unknown or not allow:
            raise UsageError(
                _OPERATION, ",".join(unknown), f"a token may be for {' and '.join(ALLOWED)}"
            )
        secret = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        token = Token(name, _digest(secret), tuple(dict.fromkeys(allow)), self._now())
        with FileLock(f"{self.path}.lock").holding():
            known = self.all()
            if any(each.name == name for each in known):
                raise UsageError(_OPERATION, name, "a token of this name exists", "Revoke it first")
            if len(known) >= TOKENS_MAX:
                raise UsageError(_OPERATION, name, f"there are {TOKENS_MAX} already")
            self._write([*known, token])
        return secret

    def revoke(self, name: str) -> None:
        """Forget a token; NotFound."""
        with FileLock(f"{self.path}.lock").holding():
            known = self.all()
            kept = [each for each in known if each.name != name]
            if len(kept) == len(known):
                raise NotFound("revoke a token", name, "no token has this name")
            self._write(kept)

    def all(self) -> list[Token]:
        """Return every token, in the order in which they were made; Damaged."""
        try:
            with open(self.path, "rb") as file:
                return msgspec.json.decode(file.read(), type=list[Token])
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as cause:
            raise Damaged("read the tokens", self.path, "it is no list of tokens") from cause

    def _write(self, tokens: list[Token]) -> None:
        self._files.write_atomic(self.path, msgspec.json.encode(tokens), 0o640)

    def _now(self) -> str:
        return isoformat(self._clock.now())


class TokenBook:
    """The tokens as the daemon knows them; `_lock` guards what was read and when."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._lock = threading.Lock()
        self._known: list[Token] = []
        self._stamp: tuple[int, ...] = ()
        self._looked_s = -LOOK_S

    def find(self, presented: str) -> Token | None:
        """Return the token that was presented, None for a stranger's."""
        digest = _digest(presented)
        found = None
        for token in self._current():
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _current(self) -> list[Token]:
        with self._lock:
            now_s = self._clock.monotonic_s()
            if now_s - self._looked_s >= LOOK_S:
                self._looked_s = now_s
                stamp = self._look()
                if stamp != self._stamp:
                    # A file that can't be read lets nobody in.
                    self._known, self._stamp = [], ()
                    self._known = self._tokens.all()
                    self._stamp = stamp
            return self._known

    def _look(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._tokens.path)
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()

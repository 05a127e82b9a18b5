"""The keys that are known, from a file of one JSON object a line. Of a key itself only its hash is kept.

    {"name": "alice", "sha256": "…", "priority": "interactive", "requests_per_second": 20, "sessions": 100}

A key is 256 random bits, so one round of SHA-256 suffices: there is no dictionary to try, which slow hashes such as
bcrypt are for, and every request would pay for one. Several lines of one name, where a key is being replaced, are one
owner, and must say the same but for the hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.keys.quotas import Quota, Usage
from service.owner import Priority

PREFIX = "serp_"
NAME = "[A-Za-z0-9._-]{1,64}"
MAX_KEY_CHARS = 256
MAX_FILE_BYTES = 4 * 2**20

_Count = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    """A line of the file; what is left out or null has no limit."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    priority: Literal["interactive", "batch"] = "interactive"
    requests_per_second: float | None = Field(default=None, gt=0, le=1e6)
    burst: _Count | None = None
    steps_per_minute: _Count | None = None
    concurrent_requests: _Count | None = None
    streams: Annotated[int, Field(ge=0)] | None = None
    sessions: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Key:
    """One owner of requests."""

    name: str
    priority: Priority
    quota: Quota
    usage: Usage


class Keyring:
    """All keys; empty where none are configured, and everybody may ask."""

    def __init__(self, keys: Iterable[tuple[bytes, Key]] = ()) -> None:
        """keys: with their hashes."""
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def become(self, other: Keyring) -> None:
        """Know the other's keys instead, for whoever looks from now on. A name whose priority and limits are as before
        goes on with what it has used.
        """
        before = {key.name: key for _, key in self._keys}
        self._keys = tuple((digest, before[key.name] if _same(before, key) else key) for digest, key in other._keys)

    def usages(self) -> Iterable[Usage]:
        """What each of the owners uses."""
        return {key.name: key.usage for _, key in self._keys}.values()

    def find(self, secret: str) -> Key | None:
        """The owner of a key as it was sent. It takes equally long whichever key it is, or none."""
        came, found = hashlib.sha256(secret.encode()).digest(), None
        for digest, key in self._keys:
            if hmac.compare_digest(digest, came):
                found = key
        return found


def _same(known: Mapping[str, Key], key: Key) -> bool:
    return key.name in known and replace(known[key.name], usage=key.usage) == key


def read_keys(path: Path | None) -> Keyring:
    """The keys of a file; none where there is no path. Raises ValueError naming the file and its line."""
    if path is None:
        return Keyring()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} is over {MAX_FILE_BYTES} bytes; a file of API keys has a line a key")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the API keys of {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no file of API keys: not utf-8 at byte {error.start}") from None
    keys: dict[str, tuple[dict[str, Any], Key]] = {}
    found: dict[bytes, Key] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                digest, key = _read(line, keys)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if digest in found:
                raise ValueError(f"{path}, line {number}: this key is there already, of {found[digest].name!r}")
            found[digest] = key
    if not found:
        raise ValueError(f"{path} has no API keys; make one with: serpentine keys new NAME")
    return Keyring(found.items())


def new_key(name: str) -> tuple[str, str]:
    """(the key, which is nowhere else, and its line for the file). Raises ValueError for a name that cannot be."""
    if not re.fullmatch(NAME, name):
        raise ValueError(f"a name of 1 to 64 of A-Z a-z 0-9 . _ - is expected, not {name[:100]!r}")
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, json.dumps({"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest()})


def _read(line: str, keys: dict[str, tuple[dict[str, Any], Key]]) -> tuple[bytes, Key]:
    """A line's hash and owner, who joins `keys` where it is the first of that name."""
    try:
        record = _Record.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]  # what came may be a key
        raise ValueError(f"{'.'.join(map(str, fault['loc'])) or 'the line'}: {fault['msg']}") from None
    said = record.model_dump(exclude={"sha256"})
    if record.name not in keys:
        quota = Quota(**{limit.name: said[limit.name] for limit in fields(Quota)})
        keys[record.name] = said, Key(record.name, Priority[record.priority.upper()], quota, Usage(record.name, quota))
    known, key = keys[record.name]
    if known != said:
        raise ValueError(f"it differs from an earlier line of {record.name!r} in more than its hash")
    return bytes.fromhex(record.sha256), key

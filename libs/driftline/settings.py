"""
Settings of one process: read once from DRIFTLINE_* variables into a frozen type, or the process does not start.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from driftline.errors import Fatal

Settings = TypeVar("Settings", bound=msgspec.Struct)

PREFIX = "DRIFTLINE_"
# May be given as DRIFTLINE_<NAME>_FILE, which names a file that holds it.
SECRETS = ("pii_key", "kafka_password", "redis_password", "registry_password")
SECRET_BYTES_MAX = 1 << 20


def read(kind: type[Settings], environment: Mapping[str, str] = os.environ) -> Settings:
    """
    Read each field of `kind` from DRIFTLINE_<FIELD>, a secret also from the file that DRIFTLINE_<FIELD>_FILE names.

    Raises Fatal naming the variable when one without a default is missing, or when a value does not fit its type.
    """
    values: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        variable = PREFIX + field.name.upper()
        value = secret(field.name, environment) if field.name in SECRETS else environment.get(variable, "")
        if value:
            values[field.name] = value
        elif field.required:
            raise Fatal(f"{variable} is not set. {kind.__doc__ or ''}".strip())
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Fatal(_worded(str(error), values)) from error


def secret(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """DRIFTLINE_<NAME>, or what the file that DRIFTLINE_<NAME>_FILE names holds; empty when neither is set. Raises Fatal."""
    variable = PREFIX + name.upper()
    if value := environment.get(variable, ""):
        return value
    place = environment.get(f"{variable}_FILE", "")
    return read_secret(Path(place), f"{variable}_FILE").strip() if place else ""


def read_secret(place: Path, variable: str) -> str:
    """What a file with a secret holds. Raises Fatal, naming `variable`, when it cannot be read, or when everybody can read it."""
    try:
        with place.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise Fatal(f"{variable}: {place} can be read or written by everybody on this machine: chmod o-rwx {place}")
            return file.read(SECRET_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"{variable}: {place} cannot be read: {type(error).__name__}") from error


def _worded(error: str, values: Mapping[str, str]) -> str:
    """Name the variable instead of the path that msgspec gives; never the value, which may be a secret."""
    for name in values:
        if f"$.{name}" in error:
            return f"{PREFIX}{name.upper()} is wrong: {error.split(' - at ', maxsplit=1)[0]}"
    return error

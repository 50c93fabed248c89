"""
Settings of one process: read once from DRIFTLINE_* variables into a frozen type, or the process does not start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from driftline.errors import Fatal

Settings = TypeVar("Settings", bound=msgspec.Struct)

PREFIX = "DRIFTLINE_"


def read(kind: type[Settings], environment: Mapping[str, str] = os.environ) -> Settings:
    """
    Read each field of `kind` from DRIFTLINE_<FIELD>.

    Raises Fatal naming the variable when one without a default is missing, or when a value does not fit its type.
    """
    values: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        variable = PREFIX + field.name.upper()
        value = environment.get(variable, "")
        if value:
            values[field.name] = value
        elif field.required:
            raise Fatal(f"{variable} is not set. {kind.__doc__ or ''}".strip())
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Fatal(_worded(str(error), values)) from error


def _worded(error: str, values: Mapping[str, str]) -> str:
    """Name the variable instead of the path that msgspec gives; never the value, which may be a secret."""
    for name in values:
        if f"$.{name}" in error:
            return f"{PREFIX}{name.upper()} is wrong: {error.split(' - at ', maxsplit=1)[0]}"
    return error

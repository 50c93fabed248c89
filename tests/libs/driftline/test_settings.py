"""Settings and secrets: from the environment, or from files that not everybody can read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from driftline.errors import Fatal
from driftline.settings import read, secret


class Wanted(msgspec.Struct, frozen=True):
    """For a test."""

    pii_key: str = ""
    ops_port: int = 0


def test_a_secret_comes_from_the_file_that_its_variable_names(tmp_path: Path) -> None:
    """
    Without the line's end; what is in the environment itself goes first; other settings know no files.
    """
    place = tmp_path / "key"
    place.touch(mode=0o600)
    place.write_text("abcd\n")
    given = {"DRIFTLINE_PII_KEY_FILE": str(place), "DRIFTLINE_OPS_PORT_FILE": str(place)}
    assert read(Wanted, given) == Wanted(pii_key="abcd", ops_port=0)
    assert read(Wanted, given | {"DRIFTLINE_PII_KEY": "ef"}).pii_key == "ef"
    assert secret("pii_key", {}) == ""


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644])
def test_a_secret_that_everybody_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    """
    The variable is named, and what to do; never what it holds.
    """
    place = tmp_path / "key"
    place.write_text("abcd")
    place.chmod(mode)
    with pytest.raises(Fatal, match=r"DRIFTLINE_PII_KEY_FILE.*chmod o-rwx") as refusal:
        read(Wanted, {"DRIFTLINE_PII_KEY_FILE": str(place)})
    assert "abcd" not in str(refusal.value)


def test_a_secret_whose_file_is_not_there_is_refused(tmp_path: Path) -> None:
    """
    A service that believes to have a key must not start without.
    """
    with pytest.raises(Fatal, match=r"DRIFTLINE_PII_KEY_FILE.*cannot be read"):
        read(Wanted, {"DRIFTLINE_PII_KEY_FILE": str(tmp_path / "none")})

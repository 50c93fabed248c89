"""
The end of Valkey's append-only file, cut off as a disk does that had not written it when the power went.
"""

from __future__ import annotations

from pathlib import Path

EMPTY_BASE_BYTES = 1 << 10  # what is written before there is anything to write


def cut_tail(folder: Path, wanted: int) -> int:
    """
    Cut `wanted` bytes, or as many as there are, off the file that is being appended to. Returns how many.

    As long as everything lies in that file (nothing was rewritten into a base yet) at least half of it stays: a store without any state is
    another dose.
    """
    growing = max(folder.glob("*.incr.aof"), key=lambda place: int(place.name.split(".")[-3]))
    bases = list(folder.glob("*.base.*"))
    size = growing.stat().st_size
    alone = all(base.stat().st_size < EMPTY_BASE_BYTES for base in bases)
    bytes_cut = min(wanted, size // 2 if alone else size)
    with growing.open("r+b") as file:
        file.truncate(size - bytes_cut)
    return bytes_cut

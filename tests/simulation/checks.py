"""
What must be true at the end of a run, whatever went wrong in it. Each check returns what it found violated, in words.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from driftline.stream.batch import sifted
from driftline.stream.records import Polled, drop_seen

from .cluster import Log
from .messages import Fields, decoded, lane
from .oracle import Numbered, taken
from .world import PROGRESS_S, World

HEADER = ("writer", "source", "partition", "offset", "index", "event_offset")


def messages(log: Log) -> list[Numbered]:
    """Everything on a log that is a message of ours."""
    found = ((record.offset, decoded(record.value)) for record in log.records)
    return [(offset, fields) for offset, fields in found if fields is not None]


def accepted(log: Log, writer: int | None = None) -> list[Fields]:
    """What a consumer takes: first copies, in order; of one writer alone, or of all."""
    found = messages(log)
    return [fields for _, fields in taken([one for one in found if writer is None or one[1]["writer"] == writer])[0]]


def same_outputs(where: str, expected: Sequence[Fields], found: Sequence[Fields], *, prefix: bool = False) -> list[str]:
    """Outputs equal the oracle's, in order; of a partition that was refused, as far as they go."""
    for at, (one, other) in enumerate(zip(expected, found, strict=False)):
        ordered = {name: other.get(name) for name in one} if len(other) != len(one) else other
        if one != ordered:
            return [f"{where}: output {at} is {_differing(one, other)}"]
    if len(found) > len(expected):
        return [f"{where}: {len(found) - len(expected)} outputs too many, the first is {_short(found[len(expected)])}"]
    if len(found) < len(expected) and not prefix:
        return [f"{where}: {len(expected) - len(found)} outputs are missing, the first is {_short(expected[len(found)])}"]
    return []


def _differing(one: Fields, other: Fields) -> str:
    if any(one.get(name) != other.get(name) for name in ("message", *HEADER)):
        return f"{_short(other)} where {_short(one)} belongs"
    differing = [name for name in one if one[name] != other.get(name)]
    return f"{_short(other)} with {', '.join(f'{name} {other.get(name)!r} instead of {one[name]!r}' for name in differing)}"


def _short(fields: Fields) -> str:
    place = "/".join(str(fields[name]) for name in HEADER[:5])
    return f"{fields['message']} {place}" + (f" ({fields['id']})" if "id" in fields else "")


def copies_identical(log: Log) -> list[str]:
    """All copies of one message are equal, byte for byte; of intake's ticks the deployment may be another."""
    known: dict[tuple[Any, ...], tuple[bytes | None, Fields]] = {}
    for record in log.records:
        fields = decoded(record.value)
        if fields is None:
            continue
        name = (*lane(fields), fields["offset"], fields["index"])
        value, before = known.setdefault(name, (record.value, fields))
        if value != record.value:
            if fields["message"] == "tick" and fields["writer"] == 1 and {**before, "deployment": 0} == {**fields, "deployment": 0}:
                continue
            return [f"{log.name}: copies differ: {_differing(before, fields)}"]
    return []


def state_equals_replay(
    world: World, group: str, number: int, log: Log, operator: Any, poisoned: Collection[str], lanes: Mapping[Any, Any]
) -> list[str]:
    """
    Ledger and rows are what the same log gives, read from its start to its end by a new core, cut into batches at random.
    """
    where = f"{group}[{number}]"
    prefix = f"{{{group}:{number}}}:".encode()
    entry = world.entry(group, number)
    if entry is None:
        return [f"{where}: there is no ledger"] if log.records else []
    if entry.next != log.end:
        return [f"{where}: the ledger stands at {entry.next}, the log ends at {log.end}"]
    last = log.records[-1]
    found = []
    if entry.anchor != (last.offset, last.timestamp, zlib.crc32(last.value or b"")):
        found.append(f"{where}: the anchor {entry.anchor} is not the last record, {last.offset}")
    told = {(name >> 48, name >> 24 & 0xFFFFFF, name & 0xFFFFFF): coordinate for name, coordinate in entry.seen.items()}
    if told != lanes:
        found.append(f"{where}: seen is {told} instead of {lanes}")
    rows = replayed(world, operator, number, log, poisoned)
    stored = {key[len(prefix) :]: value for key, value in world.store.values.items() if key.startswith(prefix)}
    stored.pop(b"ledger", None)
    stored.pop(b"tries", None)
    stored.pop(b"alone", None)
    if stored != rows:
        wrong = sorted(key for key in stored.keys() | rows.keys() if stored.get(key) != rows.get(key))
        found.append(f"{where}: {len(wrong)} of {len(rows)} rows differ from replay: {wrong[:4]}")
    return found


def replayed(world: World, operator: Any, number: int, log: Log, poisoned: Collection[str]) -> dict[bytes, bytes]:
    """The rows that a core makes of the whole log, in batches of another cut."""
    decoder, core = operator
    rows: dict[bytes, bytes] = {}
    seen: Mapping[int, tuple[int, int]] = {}
    records = [record for record in log.records if not poisoned or (decoded(record.value) or {}).get("id") not in poisoned]
    at = 0
    while at < len(records):
        some = records[at : at + 1 + world.random.randrange(24)]
        at += len(some)
        polled = Polled.of(*([getattr(record, name) for record in some] for name in ("offset", "key", "value", "timestamp")))
        batch, _ = sifted(core, *decoder.decode(number, polled))
        fresh, after = drop_seen(batch, seen)
        if not len(fresh):
            seen = after
            continue
        while needed := core.needs(fresh):
            core.load({key: rows.get(key) for key in needed})
        effects = core.step(fresh)
        seen = drop_seen(batch.without(effects.refused), seen)[1] if effects.refused else after
        for key, row in effects.state.items():
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
    return rows


def letters(world: World, topic: str, expected: Collection[tuple[str, int, int, str]]) -> list[str]:
    """Everything that was refused is in the dead letters with its reason, and nothing else is."""
    found = {(fields["topic"], fields["partition"], fields["offset"], fields["reason"]) for _, fields in messages(world.log(topic, 0))}
    wanted = set(expected)
    said = []
    if wanted - found:
        said.append(f"dead letters are missing: {sorted(wanted - found)[:3]}")
    if found - wanted:
        said.append(f"dead letters that should not be: {sorted(found - wanted)[:3]}")
    return said


def conservation(world: World) -> list[str]:
    """Per service and topic, what was read is applied, duplicate, late, dead-lettered, a tick or a broadcast copy."""
    read: dict[tuple[str, ...], int] = {}
    became: dict[tuple[str, ...], int] = {}
    for key, n in world.counts.items():
        if key[0] == "driftline_messages_read_total":  # pipeline, service, topic
            read[key[2:]] = read.get(key[2:], 0) + n
        elif key[0] == "driftline_messages_total":  # outcome, pipeline, service, topic
            became[key[3:]] = became.get(key[3:], 0) + n
    return [
        f"{' '.join(place)}: {read.get(place, 0)} were read, {became.get(place, 0)} accounted for"
        for place in sorted(read.keys() | became.keys())
        if read.get(place, 0) != became.get(place, 0)
    ]


def progress(world: World, took_s: float | None) -> list[str]:
    """When the faults stop, everything catches up in bounded time."""
    if took_s is not None:
        return []
    standing = [
        f"{group}[{number}] at {world.standing(slot, group, number)} of {world.log(slot.reads, number).end}"
        for slot in world.slots
        if not slot.refused and not world.standing_right(slot)
        for group, number in slot.partitions
    ]
    return [f"no progress within {PROGRESS_S:.0f} s after the faults stopped: {'; '.join(standing) or 'what is asked for is not there'}"]


def bounded(world: World, limits: Mapping[str, int]) -> list[str]:
    """What has a limit kept to it."""
    return [f"{name}: {world.most[name]}, with a limit of {most}" for name, most in limits.items() if world.most[name] > most]

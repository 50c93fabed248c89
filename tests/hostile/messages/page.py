"""docs/hostile-input.md, from what a run found."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from driftline.stream.dead_letters import REASONS

WHY_VALID = {
    "bit flip": "it lies in free text, or in a number that may have any value",
    "truncated": "cut off to nothing but a record that is whole",
    "bytes appended": "JSON may be followed by white space",
    "huge length": "the number stands for another one, as a value may",
    "wrong schema id": "the id is that of another version, or of its own",
    "empty key": "keys of records are not read: the key that counts is in the value; and see bit flip",
    "giant key": "keys of records are not read",
    "giant value": "",
    "random bytes": "",
    "invalid UTF-8": "it lies in bytes or numbers, where any byte is good",
    "deep nesting": "the record has no JSON of ours, and got a flipped bit instead",
    "absurd coordinate": "the number is one that a true record can have, on another lane or further on",
    "absurd time": "`time`, when something happened, may be planned ahead; ends of a window may lie anywhere before now",
    "absurd number": "the message has no such number, or the value is possible in that field",
    "absurd text": "any text of up to 1,024 bytes may be a name",
    "unknown deployment": "only inference can know, and refuses it; others take the number as told",
    "row of another length": "inference answers it, degraded; others pass it on unread",
    "tick ahead or backwards": "not a tick: other messages may be of an earlier time; a tick of the past is a copy",
    "body of another shape": "the part that was changed is one that nobody reads, or may be anything",
    "wrong type": "null where null may be, a number for a number",
    "NaN or infinity": "a number, if a large one",
    "absurd date": "a field that is no time of the merge: it may be any day",
    "duplicated key": "JSON says nothing about it; the last one counts",
    "number of 10,000 digits": "a decimal of that many digits is a number",
    "field missing": "the field may be null",
}

INTRODUCTION = """# Hostile input

A million mutated messages through the decoding and parsing of every consumed topic, and through the cores behind it, among good
ones. What is below the next line is written by `{command}`; a dose of it is in `make test`
(`tests/hostile/messages/test_mutations.py`).

## What is promised

Bad input never stops good input and never vanishes (law 9). A record that cannot be taken goes raw to `<p>-dead-letters`, with
one reason of {reasons}. Its neighbours are applied as if it had never been there. `driftline dead-letters` lists, shows and
replays it.

Upstream (`libs/driftline/stream/parse.py`): the contract of the stream; ids, keys, slices and keys of entities of at most 1,024 bytes;
numbers that are finite; a visible time from ten years before the pipeline's clock to five minutes after it (`bad_time`,
`future`): seconds that were sent for milliseconds are of January 1970, and a first record of then would begin ticks there. A
pipeline's first tick is at most a million ticks behind its clock in any case. A writer's schema that contains itself, or lists of
nothing, is not read at all: a short record by it may be of any size.

Our own topics (`libs/driftline/contracts/bounds.py`), where only our services write, and nothing keeps a stranger from doing so:
the writer, source and partition have to be ones that the topic is made from, so that `seen` in the ledger stays bounded; no time
later than the record's own timestamp and 15 minutes, so that no tick makes everything mature at once; a tick's number has to be
that of its time; labels, scores and shares within their range. The verdict depends on the record alone, never on when it is read.

The limit: `DRIFTLINE_DEAD_LETTERS_MAX` letters (10,000) within a day, of all services of a pipeline together. Past it a service
stops, and says what to do. It begins to count with what the topic took within the last day, so restarting it again and again
writes nothing more. The largest letter is 832 KiB, so 10,000 are at most 8 GB; lower the limit where that is too much.

## What cannot be told

A message that is well-formed and possible cannot be told from a true one. Whoever may write to a pipeline's internal topics can
therefore

- take the coordinate of a record that is yet to come: the true one is then dropped as its copy; a coordinate far ahead on a
  lane hides all up to it;
- publish a deployment of a higher version: models stay signed, so nothing foreign scores, but a share or an older model can be
  put in force;
- publish outcomes, examples, summaries, reports that are possible and not true, and so move labels, charts and rollouts;
- have drift refuse a true summary as `late`, by one of the same window that came first.

Let Kafka's access lists give each of these topics to the services that `docs/flow.md` names for it, and to nobody else. Read
afresh from the log, the state is the same again (`driftline rebuild`): the log keeps who said what, and the stranger's records
can be seen there by their timestamps.

"""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def written(found: Any, command: str, workers: int, seconds: float, python: str) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("driftline", "msgspec", "fastavro", "numpy"))
    parts = [
        INTRODUCTION.format(command="make hostile-messages", reasons=", ".join(REASONS)),
        f"## What was found\n\n`{command}`, {time.strftime('%Y-%m-%d')}, {seconds:,.0f} s. Python {python}, {versions}.\n",
        _table(("what", "found"), _figures(found, workers)),
        "\n### By topic and who consumes it\n",
        _by_path(found),
        "\n### By kind of mutation\n\nStill valid: what a consumer may take, and why.\n",
        _by_kind(found),
    ]
    return "\n".join(parts) + "\n"


def _figures(found: Any, workers: int) -> list[tuple[str, Any]]:
    return [
        ("mutated messages", found.mutants),
        ("in the dead letters, with a reason of the list", found.refused.total()),
        ("still valid", found.valid.total()),
        ("good neighbours, compared with a run without any mutant", found.good.total()),
        ("crashes, and exceptions that are no classification (the first ends a run)", 0),
        ("good neighbours refused, or changed by refused ones (the first ends a run)", 0),
        ("read by the loop and the rollout / accounted for by their metrics", f"{found.read:,.0f} / {found.accounted:,.0f}"),
        (
            "memory at most, in the first half of the run, in the second, and at the end",
            " / ".join(_mib(n) for n in (found.first_half_bytes, found.second_half_bytes, found.end_bytes)),
        ),
        (f"growth from half to half, of the one of {workers} processes that grew most", _mib(max(0, found.grown_bytes))),
        (
            "slowest message by itself, time of the processor",
            f"{max(found.worst_record_s.values()) * 1000:,.0f} ms, of {found.timed:,} that were timed alone",
        ),
        ("slowest poll of 400 to 500, gone through three times, likewise", f"{max(found.worst_poll_s.values()) * 1000:,.0f} ms"),
    ]


def _mib(n: int) -> str:
    return f"{n / (1 << 20):,.1f} MiB"


def _by_path(found: Any) -> str:
    reasons = [reason for reason in REASONS if any(key[2] == reason for key in found.refused)]
    rows = []
    for path in found.good:
        by = [sum(n for key, n in found.refused.items() if (key[0], key[2]) == (path, reason)) for reason in reasons]
        valid = sum(n for key, n in found.valid.items() if key[0] == path)
        worst = f"{found.worst_record_s[path] * 1000:,.0f} / {found.worst_poll_s[path] * 1000:,.0f}"
        rows.append((path, sum(by) + valid, *by, valid, found.good[path], worst))
    return _table(("topic (form or reader)", "mutants", *reasons, "still valid", "good", "slowest message / poll, ms"), rows)


def _by_kind(found: Any) -> str:
    kinds = sorted({key[1] for key in (*found.refused, *found.valid)})
    rows = []
    for kind in kinds:
        refused = sum(n for key, n in found.refused.items() if key[1] == kind)
        valid = sum(n for key, n in found.valid.items() if key[1] == kind)
        rows.append((kind, refused + valid, refused, valid, WHY_VALID.get(kind, "") if valid else ""))
    return _table(("mutation", "mutants", "refused", "still valid", "why it may be"), rows)

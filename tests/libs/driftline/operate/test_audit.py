"""The audit chain: whole through crashes and races, and broken by whatever changes the log afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from driftline.contracts.chain import START, link, seal
from driftline.contracts.messages import Arm, Deployment
from driftline.operate.audit import Answer, Audit, Finding, Record, Seal, expected, prove, prove_commands, told

ARMS = (Arm("champion", "m-1", "d1", 0.75), Arm("canary", "m-2", "d2", 0.25))


def answer(version: int) -> Deployment:
    return Deployment(version, "nothing", "idle", f"because of {version}", version * 1000, ARMS, (), "salt", 0.1)


def logged(n: int) -> tuple[list[Record], list[Answer]]:
    """Control and its answers, as the rollout writes them."""
    records = [Record(offset, 10_000 + offset, None if offset % 2 else b"k", b"command %d" % offset) for offset in range(n)]
    answers, before = [], START
    for one in records:
        made = answer(one.offset)
        before = link(before, one.offset, one.timestamp, one.key, one.value, made)
        answers.append(Answer(one.offset, one.offset, replace(made, chain=before)))
    return records, answers


def moved(records: list[Record]) -> list[Record]:
    """As in a copy of the topic: offsets without a gap."""
    return [replace(one, offset=offset) for offset, one in enumerate(records)]


def findings(records: list[Record], answers: list[Answer], start: int = 0) -> list[Finding]:
    return prove("control", start, records, answers).findings


def test_what_nobody_touched_is_whole():
    """
    Its head is the last link; what is not answered yet is said and breaks nothing.
    """
    records, answers = logged(12)
    audit = prove("control", 0, records, answers[:10])
    assert (audit.findings, audit.unanswered, audit.head_at) == ([], 2, 9)
    assert told(audit)[-1] == "the chain is whole"
    assert told(prove("control", 0, [], []))[-1] == "there is no chain yet"


CHANGES: dict[str, tuple[Callable[[list[Record]], list[Record]], list[Finding]]] = {
    "a word of a command": (
        lambda log: [replace(one, value=b"another") if one.offset == 4 else one for one in log],
        [Finding("or its answer was altered", 4, 4)],
    ),
    "when it was given": (
        lambda log: [replace(one, timestamp=1) if one.offset == 4 else one for one in log],
        [Finding("or its answer was altered", 4, 4)],
    ),
    "a key": (
        lambda log: [replace(one, key=b"") if one.offset == 5 else one for one in log],
        [Finding("or its answer was altered", 5, 5)],
    ),
    "two records compacted away": (lambda log: [one for one in log if one.offset not in (4, 5)], [Finding("was removed", 4, 5)]),
    "one removed from a copy": (lambda log: moved([one for one in log if one.offset != 4]), [Finding("was removed", 4, 4)]),
    "the last two removed": (lambda log: log[:-2], [Finding("was removed", 8, 9)]),
    "one put in": (lambda log: moved([*log[:4], Record(0, 1, None, b"forged"), *log[4:]]), [Finding("was put in", 4, 4)]),
    "two in another order": (
        lambda log: moved([*log[:4], log[5], log[4], *log[6:]]),
        [Finding("was put in", 4, 4), Finding("was removed", 5, 5)],
    ),
    "one removed and one altered": (
        lambda log: moved([replace(one, value=b"another") if one.offset == 7 else one for one in log if one.offset != 2]),
        [Finding("was removed", 2, 2), Finding("or its answer was altered", 7, 7)],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_control_is_found_at_its_place(change: str):
    """
    The rest of the log is proved all the same.
    """
    records, answers = logged(10)
    changed, wanted = CHANGES[change]
    assert sorted(findings(changed(records), answers), key=repr) == sorted(wanted, key=repr)


def altered(one: Answer, **changes: object) -> Answer:
    return replace(one, deployment=replace(one.deployment, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"reason": "another"}, [Finding("or its answer was altered", 4, 4)]),
        ({"arms": ARMS[:1]}, [Finding("or its answer was altered", 4, 4)]),
        ({"chain": "f" * 64}, [Finding("or its answer was altered", 4, 5)]),
        ({"chain": ""}, [Finding("has an answer without a link", 4, 4)]),
    ],
)
def test_whatever_changes_an_answer_is_found(changes: dict[str, object], wanted: list[Finding]):
    """
    What came of a command is as much a part of it as who gave it.
    """
    records, answers = logged(10)
    found = findings(records, [altered(one, **changes) if one.cause == 4 else one for one in answers])
    assert found[0] == wanted[0]
    assert {one.first for one in found} <= {4, 5}


def test_an_answer_that_is_gone_is_found_and_the_rest_is_proved():
    """
    The link after it cannot be proved; the one after that can.
    """
    records, answers = logged(10)
    gone = [one for one in answers if one.cause != 4]
    assert findings(records, gone) == [Finding("has lost its answer", 4, 4)]
    records[8] = replace(records[8], value=b"another")
    assert findings(records, gone) == [Finding("has lost its answer", 4, 4), Finding("or its answer was altered", 8, 8)]
    assert findings(logged(10)[0], answers[3:]) == [Finding("has lost its answer", 0, 2)]


def test_a_copy_of_an_answer_breaks_nothing_and_another_answer_does():
    """
    A rollout that was killed sends the same again; one that would say something else has another state than the loop acts on.
    """
    records, answers = logged(10)
    assert findings(records, [*answers, answers[6]]) == []
    other = altered(answers[6], move="champion")
    assert findings(records, [*answers, other]) == [Finding("was answered twice, and not the same", 6, 6)]


def test_what_kafka_deleted_from_the_start_is_told_and_is_no_break():
    """
    The answers keep the links, so what is left is proved.
    """
    records, answers = logged(10)
    audit = prove("control", 4, records[4:], answers)
    assert audit.findings == []
    assert "below @4 Kafka has deleted" in " ".join(told(audit))
    records[6] = replace(records[6], value=b"another")
    assert findings(records[4:], answers, 4) == [Finding("or its answer was altered", 6, 6)]


def test_answers_of_before_the_chain_are_told_and_prove_nothing():
    """
    The chain begins with the first answer that has a link.
    """
    records, answers = logged(10)
    former = [altered(one, chain="") for one in answers[:3]]
    later, before = [], START
    for record, one in zip(records[3:], answers[3:], strict=True):
        before = link(before, record.offset, record.timestamp, record.key, record.value, one.deployment)
        later.append(altered(one, chain=before))
    audit = prove("control", 0, records, [*former, *later])
    assert (audit.findings, audit.before) == ([], 3)


def test_both_topics_written_anew_are_found_by_a_head_that_was_noted():
    """
    Whoever can write both can make a chain that is whole; it does not go through the link that somebody else has.
    """
    records, answers = logged(10)
    noted = prove("control", 0, records, answers[:6]).head
    assert expected(prove("control", 0, records, answers), noted).findings == []
    forged, chained = logged(11)
    forged[2] = replace(forged[2], value=b"another")
    before = START
    for at, (record, one) in enumerate(zip(forged, list(chained), strict=True)):
        before = link(before, record.offset, record.timestamp, record.key, record.value, one.deployment)
        chained[at] = altered(one, chain=before)
    assert prove("control", 0, forged, chained).findings == []
    assert len(expected(prove("control", 0, forged, chained), noted).findings) == 1


def test_no_two_records_make_the_same_link():
    """
    A byte that moves from the key to the value, nothing in place of an empty text.
    """
    made = answer(1)
    pairs = [(b"ab", b"c"), (b"a", b"bc"), (None, b"abc"), (b"", b"abc"), (b"abc", None), (b"abc", b"")]
    assert len({link(START, 0, 0, key, value, made) for key, value in pairs}) == len(pairs)


def sealed(records: list[Record], first: int, last: int) -> Seal:
    """As a release of the command at `last` says it."""
    mine = [(one.offset, one.timestamp, one.key, one.value) for one in records if first <= one.offset <= last]
    return Seal(first, last, seal(mine))


COMMANDS = [Record(offset, 10_000 + offset, None, b"train %d" % offset) for offset in range(8)]
SEALS = [sealed(COMMANDS, 0, 2), sealed(COMMANDS, 0, 5)]


def of_commands(records: list[Record], start: int = 0, seals: list[Seal] = SEALS) -> tuple[list[str], list[str]]:
    """What is found of the trainer's commands, and what is noted."""
    audit = Audit("control")
    prove_commands(audit, "retrain", start, records, seals)
    return [one.what for one in audit.findings], audit.notes


def test_commands_to_the_trainer_are_proved_up_to_the_last_release():
    """
    What came after it is told, and breaks nothing; so is what Kafka has deleted from the start, and releases of before there were seals.
    """
    assert of_commands(COMMANDS) == ([], ["retrain: 8 commands, 6 sealed by a release, 2 not sealed"])
    later = [*SEALS, sealed(COMMANDS, 4, 6)]
    told = ["retrain: 4 commands, 3 sealed by a release, 1 not sealed", "  below @4 Kafka has deleted the log"]
    assert of_commands(COMMANDS[4:], 4, later) == ([], told)
    assert of_commands(COMMANDS, 0, []) == ([], ["retrain: 8 commands, 0 sealed by a release, 8 not sealed"])


@pytest.mark.parametrize(
    ("changed", "between"),
    [
        ([replace(one, value=b"another") if one.offset == 1 else one for one in COMMANDS], "@0 to @2"),
        ([replace(one, timestamp=1) if one.offset == 4 else one for one in COMMANDS], "@3 to @5"),
        (moved([one for one in COMMANDS if one.offset != 5]), "@3 to @5"),
        (moved([*COMMANDS[:4], Record(0, 1, None, b"forged"), *COMMANDS[4:]]), "@3 to @5"),
        (COMMANDS[:5], "@3 to @5"),
    ],
)
def test_a_command_to_the_trainer_that_was_changed_is_found_between_two_releases(changed: list[Record], between: str):
    """
    Altered, removed, put in, or cut off: the first release that does not fit names where.
    """
    (found,), _ = of_commands(changed)
    assert found.startswith(f"retrain{between}: a command was altered, removed or put in")

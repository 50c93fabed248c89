"""Facts go to a log and come back the same; keys find their arms; the schemas are as the rest of the tree believes."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from driftline.contracts.avro import Codec, pack_strings
from driftline.contracts.messages import (
    FACTS,
    MESSAGES,
    Arm,
    ClockRecord,
    Deployment,
    End,
    Operator,
    Release,
    Report,
    Retrain,
    Source,
    Summary,
    Trained,
    as_messages,
    facts,
    header_fields,
    schema,
    versions,
)
from driftline.errors import Invalid
from driftline.stream.batch import HEADER, Table, Varlen

CANARY = Deployment(
    version=3,
    move="canary",
    state="canary",
    reason="quiet in shadow",
    time=1_000,
    arms=(Arm("champion", "flights-1", "a1", 0.75), Arm("canary", "flights-2", "b2", 0.25)),
    shadows=(Arm("frozen", "flights-1", "a1", 0.0),),
    salt="pepper",
    fallback_score=0.25,
)
EACH = [
    CANARY,
    Deployment.none(),
    Release("flights-2", "b2", "accepted", "better", True, 5, "quality", "c-1", "trainer", {"rows": 3, "auc": 0.5}),
    Report(0, 10, ("flights-quality-2013-01-26", "x" * 80), {"alarms": [], "deep": {"b": 1, "a": None}}),
    Report(0, 10, (), {}),
    Retrain("c-1", "quality", 5, "drift", {"high": 7.5}),
    Trained("c-1", "quality", "refused", "no better", 5, 21_480, "flights-2", "b2"),
    Operator("o-1", "pause", "", "ada", "snow ❄"),
    ClockRecord(10, 3, (End("flights", 0, 7), End("weather", 1, 9)), True),
    ClockRecord(10, 3, (), False),
    Summary("answers", 0, 10, {"n": 0}),
]
KEYS = Varlen.of(f"N{number}" for number in range(4_000))


def on_a_log(*values):
    """The table that a reader gets of `values`, by way of Avro."""
    message = values[0].message
    codec = Codec(schema(message))
    made = as_messages(
        "control", message, values, source=Source.RETRAIN, offsets=range(len(values)), indexes=[0] * len(values), partition=0
    )
    columns, bad = codec.decode(codec.encode({**made.columns, "writer": [8] * len(values)}))
    assert not bad.any()
    return Table(message, np.arange(len(values)), columns)


@pytest.mark.parametrize("fact", EACH, ids=lambda fact: fact.message)
def test_a_fact_comes_back_from_the_log_as_it_was(fact):
    """
    Written as Avro and read again, by column, a fact is equal to the one that was written.
    """
    assert [fact, fact] == facts(on_a_log(fact, fact))


def test_every_fact_is_tried():
    """
    The list above has a fact of each kind that there is.
    """
    assert set(FACTS) == {fact.message for fact in EACH}


@pytest.mark.parametrize("fact", EACH, ids=lambda fact: fact.message)
def test_a_fact_ignores_the_header_of_its_record(fact):
    """
    What a reader has is a record with its coordinate; the fact takes its own fields from it.
    """
    assert fact == type(fact).from_record({**dict.fromkeys(HEADER, 0), **fact.to_record()})


@pytest.mark.parametrize("message", FACTS)
def test_a_fact_has_the_fields_of_its_schema(message):
    """
    Less the header, the fields are those of the newest version, in its order.
    """
    declared = [field["name"] for field in schema(message)["fields"]]
    assert declared == [*HEADER, *(field.name for field in fields(FACTS[message]))]


def test_a_record_without_a_field_is_refused():
    """
    A fact is whole or it is none.
    """
    with pytest.raises(Invalid, match="operator: the record has no field 'who'"):
        Operator.from_record({"id": "o-1", "action": "pause", "model": "", "reason": ""})


def test_text_that_is_no_json_is_refused():
    """
    A report whose body cannot be read is invalid, not half a report.
    """
    with pytest.raises(Invalid, match="report"):
        Report.from_record({"start": 0, "end": 1, "retrains": [], "body": "{"})


def test_evidence_is_written_in_one_way():
    """
    The order in which a dict was filled does not reach the log.
    """
    one = Retrain("c", "first", 0, "drift", {"a": 1, "b": {"d": 1, "c": 2}})
    other = replace(one, evidence={"b": {"c": 2, "d": 1}, "a": 1})
    assert one.to_record() == other.to_record()
    assert one.to_record()["evidence"] == '{"a":1,"b":{"c":2,"d":1}}'


def test_records_of_a_table_make_facts_too():
    """
    `Table.records` gives an array of strings as text; a report reads it all the same, and refuses one that was spoilt.
    """
    short = replace(EACH[3], retrains=("flights-first-2013-01-15",))
    assert short == Report.from_record(on_a_log(short).records()[0])
    with pytest.raises(Invalid, match="use `facts`"):
        Report.from_record(on_a_log(replace(short, retrains=("x" * 80,))).records()[0])


def test_an_answer_of_before_the_chain_is_read_without_a_link():
    """
    What an older version of a message had not has its default, so that old logs stay readable.
    """
    old = schema("deployment", 1)
    record = replace(CANARY, chain="not in version 1").to_record() | dict.fromkeys(HEADER, 0)
    value = Codec(old).encode({field["name"]: [record[field["name"]]] for field in old["fields"]}).tolist()
    columns, bad = Codec(old).decode(Varlen.of(value))
    assert not bad.any()
    assert facts(Table("deployment", np.arange(1), columns)) == [CANARY]


def test_a_table_of_the_data_plane_holds_no_facts():
    """
    Rows and answers are columns and stay columns.
    """
    with pytest.raises(Invalid, match="row is no message of the control plane"):
        facts(Table("row", np.arange(0), {}))


def test_messages_carry_the_coordinate_that_they_were_given():
    """
    Event offsets are -1 and the order is that of the offsets unless said otherwise; the partition is the loop's to fill in.
    """
    made = as_messages("deployments", "deployment", [CANARY, CANARY], source=Source.CONTROL, offsets=[7, 7], indexes=[0, 1])
    assert (
        *(list(made.columns[name]) for name in ("source", "offset", "index", "event_offset")),
        list(made.order),
    ) == ([6, 6], [7, 7], [0, 1], [-1, -1], [7, 7])
    assert (made.topic, made.keys, made.to, "partition" in made.columns, len(made)) == ("deployments", None, None, False, 2)


def test_messages_go_where_they_are_told():
    """
    Partition of the coordinate, event offsets, target and order are as given.
    """
    summary = Summary("answers", 0, 1, {})
    made = as_messages(
        "summaries", "summary", [summary], source=3, offsets=[9], indexes=[0], partition=4, event_offsets=[5], to=0, order=[2]
    )
    assert (list(made.columns["partition"]), list(made.columns["event_offset"]), made.to, list(made.order)) == ([4], [5], 0, [2])


def test_a_share_of_the_keys_gets_the_canary():
    """
    Of 4,000 keys about a quarter; each has one arm, whatever it was asked with.
    """
    arms = CANARY.assign(KEYS)
    assert arms.dtype == np.int64
    assert set(arms.tolist()) == {0, 1}
    assert 0.2 < arms.mean() < 0.3
    assert arms[::-7].tolist() == CANARY.assign(KEYS.take(np.arange(4_000)[::-7])).tolist()


def test_a_key_that_has_the_canary_keeps_it_when_the_share_grows():
    """
    A rollout adds keys to the canary and takes none away.
    """
    wider = replace(CANARY, arms=(replace(CANARY.arms[0], share=0.5), replace(CANARY.arms[1], share=0.5)))
    assert (wider.assign(KEYS) >= CANARY.assign(KEYS)).all()


def test_a_new_salt_draws_anew():
    """
    The keys that try the next canary are not those that tried the last.
    """
    both = CANARY.assign(KEYS) + replace(CANARY, salt="sugar").assign(KEYS)
    assert {0, 1, 2} == set(both.tolist())


def test_three_arms_share_the_keys():
    """
    Each gets its share, the champion what is left.
    """
    arms = tuple(Arm(role, role, role, share) for role, share in (("champion", 0.5), ("canary", 0.25), ("b", 0.25)))
    counts = Counter(replace(CANARY, arms=arms).assign(KEYS).tolist())
    assert counts[0] > counts[1] > 800 < counts[2] < counts[0]


def test_without_a_choice_nothing_is_drawn():
    """
    One arm answers everything; where there is none, the index says so.
    """
    assert {0} == set(replace(CANARY, arms=CANARY.arms[:1]).assign(KEYS).tolist())
    assert {-1} == set(Deployment.none().assign(KEYS).tolist())
    assert len(CANARY.assign(Varlen.of([]))) == 0


def test_digests_name_every_model_once():
    """
    Arms first, then the shadows that are not among them.
    """
    assert CANARY.digests == ("a1", "b2")


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_begins_with_its_cause(message):
    """
    Every version has the same header, so that a reader drops copies without knowing what they say.
    """
    for version in versions(message):
        assert list(header_fields()) == schema(message, version)["fields"][: len(HEADER)]


def test_the_header_is_what_the_loop_takes_it_for():
    """
    Sixteen messages share the six fields that the loop fills in and reads.
    """
    assert len(MESSAGES) == 16
    assert tuple(field["name"] for field in header_fields()) == HEADER


def test_an_unknown_message_or_version_is_refused_by_name():
    """
    The words say which there are.
    """
    with pytest.raises(Invalid, match="no message 'rwo'; there are answer, clock"):
        schema("rwo")
    with pytest.raises(Invalid, match="tick has no version 9"):
        schema("tick", 9)


def test_arrays_of_strings_may_come_packed():
    """
    The bytes that a column holds are as good as the strings.
    """
    record = {"start": 0, "end": 1, "retrains": pack_strings(["a", "b"]), "body": "{}"}
    assert Report.from_record(record).retrains == ("a", "b")

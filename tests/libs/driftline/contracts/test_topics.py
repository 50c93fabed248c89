"""A pipeline's topics are those of schemas/topics, and a file that is wrong is refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from driftline.contracts.messages import MESSAGES, schema_folder
from driftline.contracts.topics import PARTIES, Topics, load_kinds, parse_kind
from driftline.errors import Invalid


@dataclass(frozen=True)
class Pipeline:
    name: str = "flights"
    retention_ms: int = 60 * 86_400_000


GOOD = """\
# What it is for,
# in two lines.
kind: events
writers: [intake]
readers: [feature]
key: key of the stream
partitions: data
retention: pipeline
messages: [event, tick]
dead_letters: true
"""


def test_there_are_eleven_topics():
    """
    Each named by pipeline and kind, and found by attribute and by kind.
    """
    topics = Topics.of(Pipeline())
    assert len(topics.by_kind()) == 11
    assert all(topic.name == f"flights-{kind}" for kind, topic in topics.by_kind().items())
    assert topics["dead-letters"] is topics.dead_letters


def test_retention_is_the_pipelines_where_the_file_says_so():
    """
    Events as long as the pipeline keeps them, the journal for ever, dead letters for thirty days.
    """
    topics = Topics.of(Pipeline(retention_ms=77))
    assert (topics.events.retention_ms, topics.journal.retention_ms, topics.dead_letters.retention_ms) == (77, -1, 30 * 86_400_000)


def test_data_topics_are_partitioned_alike_and_the_control_plane_is_not():
    """
    Partition n of every data topic holds the same keys.
    """
    partitioned = {kind for kind, topic in Topics.of(Pipeline()).by_kind().items() if topic.partitioned}
    assert partitioned == {"events", "features", "predictions", "journal", "examples"}


def test_every_message_is_on_some_topic():
    """
    A schema that nothing may carry is dead.
    """
    assert set(MESSAGES) == {message for kind in load_kinds().values() for message in kind.messages}


def test_a_fact_has_one_writer_and_a_command_one_reader():
    """
    But for merge logs and dead letters, which name theirs.
    """
    kinds = load_kinds().values()
    several = {kind.kind for kind in kinds if len(kind.writers) > 1 and len(kind.readers) > 1}
    assert several == {"journal"}
    assert all(set(kind.writers) | set(kind.readers) <= set(PARTIES) for kind in kinds)


def test_the_comment_at_the_head_is_the_purpose():
    """
    It reaches the generated page.
    """
    assert parse_kind("events", GOOD).purpose == "What it is for, in two lines."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("writers:", "writer:"), "differs by writer, writers"),
        (("dead_letters: true", ""), "differs by dead_letters"),
        (("dead_letters: true", "dead_letters: true\nowner: me"), "differs by owner"),
        (("dead_letters: true", "dead_letters: 'yes'"), "dead_letters must be true or false"),
        (("[intake]", "[intaek]"), "writers must be a list of intake, "),
        (("[intake]", "intake"), "writers must be a list of"),
        (("[feature]", "[]"), "readers must be a list of"),
        (("[event, tick]", "[event, tock]"), "messages must be a list of names of files"),
        (("partitions: data", "partitions: 0"), 'partitions must be "data" or a number'),
        (("partitions: data", "partitions: true"), 'partitions must be "data" or a number'),
        (("retention: pipeline", "retention: 30"), "retention must be forever, pipeline, or days"),
        (("kind: events", "kind: features"), "the file is named events, its kind is features"),
        (("key: key of the stream", "key: 7"), "key must be words"),
        (("key: key of the stream", "key: a\nkey: b"), "a key comes twice"),
        (("kind: events", "kind: [events"), "schemas/topics/events.yaml"),
        ((GOOD, "- a list"), "must have exactly the keys"),
    ],
)
def test_a_file_that_is_wrong_is_refused(change, words):
    """
    Each of these would have left a topic laxer than it looks.
    """
    with pytest.raises(Invalid, match=r"schemas/topics/events\.yaml") as caught:
        parse_kind("events", GOOD.replace(*change))
    assert words in str(caught.value)


def test_a_missing_kind_is_refused(tmp_path):
    """
    The code and the folder have the same kinds.
    """
    for path in (schema_folder() / "topics").glob("*.yaml"):
        if path.stem != "clock":
            (tmp_path / path.name).write_text(path.read_text())
    with pytest.raises(Invalid, match="differ by clock"):
        load_kinds(tmp_path)


def test_a_kind_that_there_is_not_is_refused_by_name():
    """
    The words say which there are.
    """
    with pytest.raises(Invalid, match="no topic of the kind 'event'; there are events"):
        Topics.of(Pipeline())["event"]

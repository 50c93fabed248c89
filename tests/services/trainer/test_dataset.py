"""The rows to train on: the same, however they were read."""

from __future__ import annotations

import numpy as np
import pytest

from driftline.errors import Invalid
from driftline.stream.batch import Batch
from services.trainer.dataset import History

EVER = 1 << 60


@pytest.fixture
def history(pipeline):
    return History(pipeline.layout)


def test_rows_are_what_was_served_in_order_of_asking(world, history):
    """
    Each label finds the row of its own event, features and ages byte for byte.
    """
    world.fill(history)
    dataset = history.dataset(EVER)
    order = np.lexsort((world.event_offset, world.partition, world.asked))
    assert dataset.matrix.tobytes() == world.matrix[order].tobytes()
    assert dataset.label.tolist() == world.label[order].tolist()
    assert set(dataset.ages.reshape(-1).tolist()) == {60.0}
    assert history.without_row == 0


def test_the_order_and_the_size_of_the_batches_read_make_no_difference(world, pipeline, history):
    """
    Partitions the other way round, in small pieces, labels after rows: the same digest.
    """
    world.fill(history)
    other = History(pipeline.layout)
    for partition in (1, 0):
        for piece in np.array_split(world.of(partition), 7):
            other.add_examples(world.examples(partition, piece))
            other.add_journal(world.answers(partition, piece))
    assert other.dataset(EVER).digest() == history.dataset(EVER).digest()


def test_reading_on_adds_to_what_is_there(world, pipeline, history):
    """
    Asked in between and asked at the end: the same as read at once.
    """
    grown = History(pipeline.layout)
    for piece in np.array_split(world.of(0), 3):
        grown.add_journal(world.answers(0, piece))
        grown.add_examples(world.examples(0, piece))
        grown.dataset(EVER)
    history.add_journal(world.answers(0, world.of(0)))
    history.add_examples(world.examples(0, world.of(0)))
    assert grown.dataset(EVER).digest() == history.dataset(EVER).digest()


def test_the_digest_changes_with_one_label_and_with_one_bit_of_a_row(world, history, pipeline):
    """
    Or it would prove nothing.
    """
    world.fill(history)
    digests = {history.dataset(EVER).digest()}
    for change in (lambda: world.label.__setitem__(3, 1 - world.label[3]), lambda: world.rows.data.__setitem__(5, world.rows.data[5] ^ 1)):
        world.rows = pipeline.layout.pack_whole(np.frombuffer(world.rows.data.tobytes(), "<f4").reshape(len(world.rows), -1).copy())
        change()
        changed = History(pipeline.layout)
        world.fill(changed)
        digests.add(changed.dataset(EVER).digest())
    assert len(digests) == 3


def test_the_latest_revision_wins_whenever_it_was_read(world, history):
    """
    Even when the first label arrives after the revision.
    """
    some = world.of(0)[:5]
    history.add_journal(world.answers(0, some))
    history.add_examples(world.examples(0, some, revision=np.ones(5, np.int64), label=1 - world.label[some]))
    history.add_examples(world.examples(0, some))
    assert history.dataset(EVER).label.tolist() == (1 - world.label[some]).tolist()


def test_what_was_not_known_yet_is_not_trained_on(world, history):
    """
    Neither labels nor revisions of a later time.
    """
    some = world.of(0)[:6]
    known = np.array([10, 10, 10, 10, 99, 99])
    history.add_journal(world.answers(0, some))
    history.add_examples(world.examples(0, some, known=known))
    history.add_examples(world.examples(0, some[:1], known=np.array([50]), revision=np.array([1]), label=1 - world.label[some[:1]]))
    assert history.dataset(10).label.tolist() == world.label[some[:4]].tolist()
    assert history.dataset(50).label.tolist() == [1 - world.label[some[0]], *world.label[some[1:4]]]


def test_an_excluded_label_takes_the_row_out(world, history):
    """
    Also when a revision excludes what had a label.
    """
    some = world.of(0)[:3]
    history.add_journal(world.answers(0, some))
    history.add_examples(world.examples(0, some, label=np.array([-1, 1, 1])))
    history.add_examples(world.examples(0, some[1:2], revision=np.array([1]), label=np.array([-1])))
    assert history.dataset(EVER).event_offset.tolist() == [world.event_offset[some[2]]]


def test_shadows_are_not_trained_on(world, history):
    """
    Neither their answers, which have no row, nor their examples.
    """
    some = world.of(0)[:4]
    history.add_journal(world.answers(0, some, index=np.array([0, 1, 0, 2]), shadow=np.array([False, True, False, True])))
    history.add_examples(world.examples(0, some, answer_index=np.array([0, 1, 0, 2])))
    assert len(history.dataset(EVER)) == 2


def test_a_label_without_its_row_is_left_out_and_counted(world, history):
    """
    As happens when the definition of the features changed.
    """
    some = world.of(0)[:4]
    history.add_journal(world.answers(0, some[1:]))
    history.add_examples(world.examples(0, some))
    assert len(history.dataset(EVER)) == 3
    assert history.without_row == 1


def test_rows_of_another_layout_are_no_rows(world, history, pipeline):
    """
    Their columns mean something else.
    """
    some = world.of(0)[:4]
    answers = world.answers(0, some)
    layouts = [pipeline.layout.version, "another", pipeline.layout.version, "0" * len(pipeline.layout.version)]
    history.add_journal(world.answers(0, some, layout=type(answers["answer"]["layout"]).of(layouts)))
    history.add_examples(world.examples(0, some))
    assert len(history.dataset(EVER)) == 2
    assert history.without_row == 2


def test_rows_answered_without_a_model_count_and_are_known_as_such(world, history):
    """
    The first model has no others.
    """
    some = world.of(0)[:3]
    history.add_journal(world.answers(0, some, flags=np.array([1, 0, 4])))
    history.add_examples(world.examples(0, some))
    assert history.dataset(EVER).degraded.tolist() == [True, False, False]


def test_labels_are_settled_as_far_as_the_slowest_partition_says(world, history):
    """
    A partition that has told nothing yet holds everything back.
    """
    history.add_examples(world.examples(0, world.of(0)[:1], ticks=[100, 200]))
    assert history.settled([0]) == 200
    assert history.settled([0, 1]) == 0
    history.add_examples(world.examples(1, world.of(1)[:1], ticks=[150]))
    assert history.settled([0, 1]) == 150


def test_no_label_or_no_row_is_nothing_to_train_on(world, history):
    """
    Said in words, not by an index error.
    """
    with pytest.raises(Invalid, match="no label"):
        history.dataset(EVER)
    history.add_examples(world.examples(0, world.of(0)[:3]))
    history.add_journal(Batch(0, 0, 0, {}))
    with pytest.raises(Invalid, match="no label"):
        history.dataset(EVER)


def test_ranges_name_the_events_by_partition(world, history):
    """
    First and one past the last offset in the log of events.
    """
    world.fill(history)
    last = int(world.event_offset.max()) + 1
    assert history.dataset(EVER).ranges() == {"events": {"0": [10, last], "1": [10, last]}}

"""What could not be taken is kept as it came, or sealed where it may be personal."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from driftline.errors import Fatal, Invalid
from driftline.stream.batch import Refused, Varlen
from driftline.stream.dead_letters import DeadLetters, unseal
from driftline.stream.records import Polled

KEY = bytes(range(32))
POLLED = Polled.of([4, 7], [b"N14228", None], [b"{broken", None], [1_000, 2_000])
REFUSED = [Refused(4, "undecodable", "no JSON"), Refused(7, "undecodable", "the record has no value")]


def letters(sealed: Sequence[str], limit: int = 10) -> DeadLetters:
    return DeadLetters("toy", "intake", 16, limit, key=KEY, sealed=sealed)


def column(made: DeadLetters, name: str) -> Varlen:
    (messages,) = made.of("flights", 1, POLLED, REFUSED)
    found = messages.columns[name]
    assert isinstance(found, Varlen)
    return found


def test_a_letter_holds_the_record_as_it_came() -> None:
    """
    Key and value to the byte, and null where there was none.
    """
    made = letters(sealed=[])
    assert column(made, "key").take(column(made, "key").starts >= 0).tolist() == [b"N14228"]
    assert column(made, "value").take(column(made, "value").starts >= 0).tolist() == [b"{broken"]


def test_a_letter_from_a_topic_with_personal_fields_is_sealed() -> None:
    """
    Key and value are nowhere in clear, and the key of the pipeline opens them.
    """
    made = letters(sealed=["flights"])
    for name, plain in (("key", b"N14228"), ("value", b"{broken")):
        kept = column(made, name)
        assert plain not in kept.data.tobytes()
        assert plain == unseal(kept[0], KEY)
    with pytest.raises(Invalid, match="DRIFTLINE_PII_KEY"):
        unseal(column(made, "key")[0], KEY[::-1])


def test_more_letters_than_the_limit_stop_the_service() -> None:
    """
    Past it the fault is taken for ours, and the variable that raises it is named.
    """
    assert len(letters(sealed=[], limit=2).of("flights", 1, POLLED, REFUSED)) == 1
    with pytest.raises(Fatal, match="DRIFTLINE_DEAD_LETTERS_MAX"):
        letters(sealed=[], limit=1).of("flights", 1, POLLED, REFUSED)


def test_a_restart_does_not_begin_to_count_at_zero() -> None:
    """
    A process that is started again time after time would fill the disk a limit at a time.
    """
    made = letters(sealed=[], limit=10)
    made.begin(lately=9)
    with pytest.raises(Fatal, match="a restart alone"):
        made.of("flights", 1, POLLED, REFUSED)

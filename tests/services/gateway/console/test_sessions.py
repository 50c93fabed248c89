"""Logging in at a browser: what is kept, for how long, and what a form has to bring."""

from __future__ import annotations

from driftline.clock import ManualClock
from driftline.operate.tokens import Holder, Role, Tokens, digest_of
from services.gateway.console.sessions import LIFE_S, OF_ONE_MAX, SESSIONS_MAX, Sessions

ANN = Holder("ann", frozenset({Role.OPERATOR}))
TOKENS = Tokens([(digest_of("dl_anns"), ANN)])


def test_a_token_becomes_a_session_that_ends() -> None:
    """
    After its time, and when its holder logs out; an id that nobody was given is nobody.
    """
    clock = ManualClock()
    sessions = Sessions(TOKENS, clock)
    first, second = sessions.begin("dl_anns"), sessions.begin("dl_anns")
    assert first is not None and second is not None and first != second
    assert (found := sessions.find(first)) is not None and found.holder == ANN
    sessions.end(second)
    assert [sessions.find(id) for id in (second, "guess", "", None)] == [None] * 4
    clock.advance(int(LIFE_S * 1000))
    assert sessions.find(first) is None


def test_a_wrong_token_begins_nothing() -> None:
    """
    Nor does the digest, which is in the file.
    """
    sessions = Sessions(TOKENS, ManualClock())
    assert [sessions.begin(token) for token in ("", "dl_bobs", digest_of("dl_anns"))] == [None] * 3


def test_neither_token_nor_id_is_in_memory() -> None:
    """
    Whoever reads the memory of the process finds digests.
    """
    sessions = Sessions(TOKENS, ManualClock())
    id = sessions.begin("dl_anns")
    assert id is not None and id not in repr(vars(sessions)) and "dl_anns" not in repr(vars(sessions))


def test_there_is_a_limit_and_the_oldest_ends() -> None:
    """
    Nothing grows for ever.
    """
    tokens = Tokens([(digest_of(f"dl_{number}"), Holder(f"p{number}", frozenset())) for number in range(SESSIONS_MAX + 1)])
    sessions = Sessions(tokens, ManualClock())
    ids = [sessions.begin(f"dl_{number}") for number in range(SESSIONS_MAX + 1)]
    assert [sessions.find(ids[0]) is None, sessions.find(ids[1]) is None] == [True, False]


def test_whoever_logs_in_time_and_again_ends_sessions_of_their_own() -> None:
    """
    Or else one token, of whatever role, could log everybody out.
    """
    tokens = Tokens([(digest_of(f"dl_{name}"), Holder(name, frozenset())) for name in ("ann", "eve")])
    sessions = Sessions(tokens, ManualClock())
    anns, eves = sessions.begin("dl_ann"), [sessions.begin("dl_eve") for _ in range(SESSIONS_MAX + 1)]
    assert sessions.find(anns) is not None
    assert [sessions.find(id) is not None for id in eves] == [False] * (SESSIONS_MAX + 1 - OF_ONE_MAX) + [True] * OF_ONE_MAX


def test_each_session_has_a_word_of_its_own_for_its_forms() -> None:
    """
    A form that was made for somebody else is not taken.
    """
    sessions = Sessions(TOKENS, ManualClock())
    one, other = (sessions.find(sessions.begin("dl_anns")) for _ in range(2))
    assert one is not None and other is not None
    assert [one.is_from_our_form(word) for word in (one.form_word, other.form_word, "", "ü")] == [True, False, False, False]


def test_without_tokens_everybody_on_this_machine_has_one_session() -> None:
    """
    No cookie names it, and no token begins another.
    """
    sessions = Sessions(None, ManualClock())
    assert sessions.open and sessions.find(None) is sessions.find("anything") is not None
    assert sessions.begin("dl_anns") is None

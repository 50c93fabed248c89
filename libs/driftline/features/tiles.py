"""
The state of an entity, how a record is folded into it, and what a question finds there. One fold, wherever features are made.

A window of length W is kept in tiles of the hop H = W / 12: tile k holds what became visible in [kH, (k + 1)H). A question at T asks for
the tiles from (T - W) // H on, so the old end is rounded down to a tile: the window is never shorter than W and at most one hop longer.
The newest tile holds all that came so far, which makes the new end exact. With an offset E (`ending`) both ends are rounded down: tiles
(T - E - W) // H to (T - E) // H - 1. A ring of tiles, and the visible time of the newest record in it, are all that is kept: a new tile
takes the place of the oldest.

*As-of is strict.* A question at T must not see records visible at T, wherever a batch was cut between them. All records at the newest
time fall into one tile, so beside the ring lies a copy of that tile as it was before the first of them (the copy follows only what comes
later but is older). A question at that very time reads the copy. A question that is older still (out of order, live only) leaves out
the tile that it falls into and all newer ones, because they may hold what it must not see.

*Exact ones.* `last` and `seconds_since` keep the newest record and the newest that is strictly older; of equal times the later on the
log wins. `ewma` keeps its weighted sums in the same two versions. `distinct` keeps, for each value, when it was seen last and when
before that; when full it forgets the value that was seen longest ago.

*Lateness.* A record up to `lateness` behind the newest of its entity in a view lands in its own tile, if the ring still has it; one that
is later is not folded. So many tiles are kept beyond a window that a question as late as that still finds all of it.

*Copies.* For each stream and key the ids seen last are remembered, by 64-bit hash: an id is a copy while the record that brought it is
within the horizon of the newest, and among the last so many.

Everything is a word of 8 bytes in one array; times are int64, numbers float64 through a view of the same memory. An entity's words are
its row in the store. Sums are added in the order of the log within a tile, then from the oldest tile to the newest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.compiled import prefetch, types, uncounted
from driftline.stream.batch import Ints

ROW_FORMAT = 2  # of the rows in the store: raise it with every change of the words below, of `plan`, or of `packing`
NEVER = -(2**62)
NONE = -1

COUNT, SUM, MEAN, MIN, MAX, STD, LAST, SINCE, EWMA, DISTINCT = range(10)

AGGREGATE_FIELDS = 10  # of a row of Plan.aggregates:
KIND, VIEW, AT, COLUMN, WINDOW, HOP, ENDING, KEPT, CELL, READY = range(AGGREGATE_FIELDS)

# Words of an entity: the times of its first, its newest, and its newest but one record, then each aggregate's.
FIRST, NEWEST, PREVIOUS = range(3)
HEADER_WORDS = 3
# Words of an aggregate: of a window, newest time, copy of the newest tile, tiles; of an exact one as its function says.
SEEN_WORDS = 3  # of a value of `distinct`: code, newest time, the time before that
# Words of a memory of ids: how many, newest time, then hash and time of each.
MEMORY_COUNT, MEMORY_NEWEST = range(2)
MEMORY_HEADER_WORDS, MEMORY_WORDS = 2, 2

APPLIED, DUPLICATE, LATE, REFUSED = range(4)  # what became of a record

EVENTS_AHEAD = 8  # entities of events so far ahead are fetched from memory
FETCHED_WORDS, LINE_WORDS = 48, 8

DAY_MS = 86_400_000

Words = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


def empty_aggregate(kind: int, kept: int, cell: int) -> Ints:
    """The words of an aggregate before its first record."""
    if cell:
        tile = np.full(cell, math.nan if kind in (MIN, MAX) else 0.0)
        return np.concatenate([np.array([NEVER], np.int64), np.tile(tile, 1 + kept).view(np.int64)])
    if kind in (LAST, SINCE):
        return np.array([NEVER, 0, NEVER, 0], np.int64)
    if kind == EWMA:
        return np.array([NEVER, 0, 0, NEVER, 0, 0], np.int64)
    return np.zeros(1 + SEEN_WORDS * kept, np.int64)


@uncounted()
def _clear(numbers: Numbers, at: int, kind: int, cell: int) -> None:
    for word in range(cell):
        numbers[at + word] = np.nan if kind in (MIN, MAX) else 0.0


@uncounted()
def _add(numbers: Numbers, at: int, kind: int, x: float) -> None:
    """One more value in a tile."""
    if kind == COUNT:
        numbers[at] += 1.0
    elif kind in (SUM, MEAN):
        numbers[at] += 1.0
        numbers[at + 1] += x
    elif kind == MIN:
        numbers[at] = x if np.isnan(numbers[at]) else min(numbers[at], x)
    elif kind == MAX:
        numbers[at] = x if np.isnan(numbers[at]) else max(numbers[at], x)
    else:  # Welford: number, mean, sum of squared differences from it
        numbers[at] += 1.0
        difference = x - numbers[at + 1]
        numbers[at + 1] += difference / numbers[at]
        numbers[at + 2] += difference * (x - numbers[at + 1])


@uncounted()
def _fold_window(words: Words, numbers: Numbers, at: int, aggregates: Ints, one: int, visible: int, x: float) -> None:
    kind, hop, kept, cell = aggregates[one, KIND], aggregates[one, HOP], aggregates[one, KEPT], aggregates[one, CELL]
    newest, copy = words[at], at + 1
    ring = copy + cell
    tile = visible // hop
    place = ring + (tile % kept) * cell
    if visible > newest:
        if newest != NEVER:
            for empty in range(max(newest // hop + 1, tile - kept + 1), tile + 1):
                _clear(numbers, ring + (empty % kept) * cell, kind, cell)
        for word in range(cell):
            words[copy + word] = words[place + word]
        words[at] = visible
    elif visible < newest:
        if tile <= newest // hop - kept:
            return
        if tile == newest // hop:
            _add(numbers, copy, kind, x)
    _add(numbers, place, kind, x)


@uncounted()
def _fold_last(words: Words, numbers: Numbers, at: int, visible: int, x: float) -> None:
    if visible > words[at]:
        words[at + 2], words[at + 3] = words[at], words[at + 1]
        words[at] = visible
        numbers[at + 1] = x
    elif visible == words[at]:
        numbers[at + 1] = x
    elif visible >= words[at + 2]:
        words[at + 2] = visible
        numbers[at + 3] = x


@uncounted()
def _decay(numbers: Numbers, at: int, ms: int, half_life_ms: int) -> None:
    factor = 2.0 ** (-ms / half_life_ms)
    numbers[at + 1] *= factor
    numbers[at + 2] *= factor


@uncounted()
def _weigh(words: Words, numbers: Numbers, at: int, visible: int, x: float, half_life_ms: int) -> None:
    """One more value in a pair of weighted sums, which are as of the newest time among their values."""
    weight = 1.0
    if words[at] == NEVER:
        words[at] = visible
    elif visible > words[at]:
        _decay(numbers, at, visible - words[at], half_life_ms)
        words[at] = visible
    else:
        weight = 2.0 ** (-(words[at] - visible) / half_life_ms)
    numbers[at + 1] += weight * x
    numbers[at + 2] += weight


@uncounted()
def _fold_ewma(words: Words, numbers: Numbers, at: int, visible: int, x: float, half_life_ms: int) -> None:
    if visible > words[at]:
        for word in range(3):
            words[at + 3 + word] = words[at + word]
    elif visible < words[at]:
        _weigh(words, numbers, at + 3, visible, x, half_life_ms)
    _weigh(words, numbers, at, visible, x, half_life_ms)


@uncounted()
def _fold_distinct(words: Words, at: int, most: int, visible: int, code: int) -> None:
    count = words[at]
    oldest = NONE
    for seen in range(at + 1, at + 1 + SEEN_WORDS * count, SEEN_WORDS):
        if words[seen] == code:
            if visible > words[seen + 1]:
                words[seen + 2] = words[seen + 1]
                words[seen + 1] = visible
            elif visible < words[seen + 1]:
                words[seen + 2] = max(words[seen + 2], visible)
            return
        if oldest == NONE or words[seen + 1] < words[oldest + 1]:
            oldest = seen
    if count < most:
        oldest = at + 1 + SEEN_WORDS * count
        words[at] += 1
    elif visible < words[oldest + 1]:
        return
    words[oldest] = code
    words[oldest + 1] = visible
    words[oldest + 2] = NEVER


@uncounted()
def _fold_aggregate(words: Words, numbers: Numbers, entity: int, aggregates: Ints, one: int, visible: int, x: float, code: int) -> None:
    """`x` is NaN, and `code` 0, where the record has nothing to say."""
    kind, at = aggregates[one, KIND], entity + aggregates[one, AT]
    if kind == DISTINCT:
        if code != 0:
            _fold_distinct(words, at, aggregates[one, KEPT], visible, code)
        return
    if np.isnan(x) or (kind in (COUNT, SINCE) and x != 1.0):  # of a condition, 1 is true
        return
    if kind in (LAST, SINCE):
        _fold_last(words, numbers, at, visible, x)
    elif kind == EWMA:
        _fold_ewma(words, numbers, at, visible, x, aggregates[one, WINDOW])
    else:
        _fold_window(words, numbers, at, aggregates, one, visible, x)


@uncounted()
def _fold_header(words: Words, entity: int, visible: int) -> None:
    first = words[entity + FIRST]
    words[entity + FIRST] = visible if first == NEVER else min(first, visible)
    newest = words[entity + NEWEST]
    if visible > newest:
        words[entity + PREVIOUS] = newest
        words[entity + NEWEST] = visible
    elif visible < newest:
        words[entity + PREVIOUS] = max(words[entity + PREVIOUS], visible)


@uncounted()
def _fold(
    words: Words,
    numbers: Numbers,
    entity: int,
    aggregates: Ints,
    first: int,
    end: int,
    visible: int,
    values: Numbers,
    value_codes: Ints,
    event: int,
) -> None:
    """One record into the aggregates from `first` to `end` of an entity."""
    _fold_header(words, entity, visible)
    for one in range(first, end):
        column = aggregates[one, COLUMN]
        if column < 0:
            _fold_aggregate(words, numbers, entity, aggregates, one, visible, 1.0, 0)
        elif aggregates[one, KIND] == DISTINCT:
            _fold_aggregate(words, numbers, entity, aggregates, one, visible, 1.0, value_codes[event, column])
        else:
            _fold_aggregate(words, numbers, entity, aggregates, one, visible, values[event, column], 0)


@uncounted()
def _newest_before(words: Words, newest: int, previous: int, asked: int) -> int:
    """The newest of two times that is before `asked`; NEVER where neither is."""
    return words[newest] if words[newest] < asked else words[previous] if words[previous] < asked else NEVER


@uncounted()
def _window(words: Words, numbers: Numbers, at: int, aggregates: Ints, one: int, asked: int) -> float:
    kind, hop, kept, cell = aggregates[one, KIND], aggregates[one, HOP], aggregates[one, KEPT], aggregates[one, CELL]
    newest = words[at]
    end = asked - aggregates[one, ENDING]
    first, last = (end - aggregates[one, WINDOW]) // hop, end // hop
    if aggregates[one, ENDING] > 0 or asked < newest:
        last -= 1
    copy = at + 1
    top = newest // hop
    n, total, extreme, mean, squares = 0.0, 0.0, np.nan, 0.0, 0.0
    if newest != NEVER:
        oldest, ring = max(first, top - kept + 1), copy + cell
        following = ring + (oldest % kept) * cell
        for tile in range(oldest, min(last, top) + 1):
            place = copy if tile == top and asked == newest else following
            following = following + cell if following < ring + (kept - 1) * cell else ring
            if kind in (MIN, MAX):
                x = numbers[place]
                if not np.isnan(x) and (np.isnan(extreme) or (x < extreme) == (kind == MIN)):
                    extreme = x
            elif kind == STD:
                if numbers[place] > 0.0:
                    both = n + numbers[place]
                    difference = numbers[place + 1] - mean
                    squares += numbers[place + 2] + difference * difference * n * numbers[place] / both
                    mean += difference * numbers[place] / both
                    n = both
            else:
                n += numbers[place]
                if kind != COUNT:
                    total += numbers[place + 1]
    if kind == COUNT:
        return n
    if kind == SUM:
        return total
    if kind == MEAN:
        return total / n if n > 0.0 else np.nan
    if kind == STD:
        return math.sqrt(squares / n) if n > 0.0 else np.nan
    return extreme


@uncounted()
def _exact(words: Words, numbers: Numbers, at: int, aggregates: Ints, one: int, asked: int) -> float:
    """`last` and `seconds_since`."""
    place = at if words[at] < asked else at + 2
    seen = words[place]
    if seen == NEVER or seen >= asked or seen < asked - aggregates[one, WINDOW]:
        return math.nan
    if aggregates[one, KIND] == LAST:
        return float(numbers[place + 1])
    return float((asked - seen) / 1000.0)


@uncounted()
def _seen(words: Words, at: int, aggregates: Ints, one: int, asked: int) -> float:
    """`distinct`: how many values were seen in the window, its old end rounded down to a tile."""
    start = (asked - aggregates[one, WINDOW]) // aggregates[one, HOP] * aggregates[one, HOP]
    n = 0.0
    for seen in range(at + 1, at + 1 + SEEN_WORDS * words[at], SEEN_WORDS):
        if _newest_before(words, seen + 1, seen + 2, asked) >= start:
            n += 1.0
    return n


@uncounted()
def _aggregate(words: Words, numbers: Numbers, entity: int, aggregates: Ints, one: int, asked: int) -> float:
    """What an aggregate of the entity says as of `asked`; NaN where it is missing."""
    at, kind = entity + aggregates[one, AT], aggregates[one, KIND]
    first = words[entity + FIRST]
    if aggregates[one, READY] > 0 and (first == NEVER or asked - first < aggregates[one, READY]):
        return np.nan
    if kind in (LAST, SINCE):
        return _exact(words, numbers, at, aggregates, one, asked)
    if kind == EWMA:
        place = at if words[at] < asked else at + 3
        return numbers[place + 1] / numbers[place + 2] if words[place] != NEVER and words[place] < asked else np.nan
    if kind == DISTINCT:
        return _seen(words, at, aggregates, one, asked)
    return _window(words, numbers, at, aggregates, one, asked)


@uncounted()
def _age_s(words: Words, entity: int, asked: int) -> float:
    seen = _newest_before(words, entity + NEWEST, entity + PREVIOUS, asked)
    return np.nan if seen == NEVER else (asked - seen) / 1000.0


@uncounted()
def _is_copy(words: Words, at: int, horizon_ms: int, most: int, visible: int, code: int) -> bool:
    """Whether the id was seen; if not, it is remembered, and what has left the horizon or is one too many is forgotten."""
    newest = max(words[at + MEMORY_NEWEST], visible)
    ids = at + MEMORY_HEADER_WORDS
    count = words[at + MEMORY_COUNT]
    kept = 0
    for place in range(ids, ids + MEMORY_WORDS * count, MEMORY_WORDS):
        if words[place + 1] >= newest - horizon_ms:
            if words[place] == code:
                return True  # what was moved so far was moved onto itself or onto what had left the horizon
            kept += 1
    if visible < newest - horizon_ms:
        return False  # so old that the memory would forget it at once
    if kept < count or kept >= most:
        _forget(words, at, newest - horizon_ms, kept - most + 1)
    place = ids + MEMORY_WORDS * words[at + MEMORY_COUNT]
    words[place] = code
    words[place + 1] = visible
    words[at + MEMORY_COUNT] += 1
    words[at + MEMORY_NEWEST] = newest
    return False


@uncounted()
def _forget(words: Words, at: int, since: int, too_many: int) -> None:
    """Close up the memory: without what is older than `since`, and without the `too_many` that came first of the rest."""
    ids = at + MEMORY_HEADER_WORDS
    count, kept = words[at + MEMORY_COUNT], 0
    for place in range(ids, ids + MEMORY_WORDS * count, MEMORY_WORDS):
        if words[place + 1] >= since:
            if too_many > 0:
                too_many -= 1
                continue
            free = ids + MEMORY_WORDS * kept
            words[free] = words[place]
            words[free + 1] = words[place + 1]
            kept += 1
    words[at + MEMORY_COUNT] = kept


@uncounted()
def _answer(
    words: Words,
    numbers: Numbers,
    base: Ints,
    slots: Ints,
    event: int,
    aggregates: Ints,
    features: Ints,
    terms: Ints,
    ages: Ints,
    asked: int,
    rows: Any,
    row: int,
) -> None:
    """Write what all views say as of `asked` into a row; the question's own inputs keep their places free."""
    for feature in range(len(features)):
        total = 0.0
        for term in range(features[feature, 1], features[feature, 2]):
            one = terms[term, 0]
            slot = slots[event, aggregates[one, VIEW]]
            x = _aggregate(words, numbers, base[slot], aggregates, one, asked) if slot >= 0 else np.nan
            total += terms[term, 1] * x
        rows[row, features[feature, 0]] = total
    for view in range(len(ages)):
        slot = slots[event, view]
        rows[row, ages[view]] = _age_s(words, base[slot], asked) if slot >= 0 else np.nan


_I1, _I2 = types.int64[::1], types.int64[:, ::1]
_F1, _F2 = types.float64[::1], types.float64[:, ::1]
_SIGNATURE = types.int64(
    _I1, _F1, _I1, _I2, _I2, _I1, _I2, _I2, _I2, _I1, _I1, _I1, _I1, _I2, _F2, _I2, _I1, types.float32[:, ::1], _I1, _I1
)


@uncounted()
def _fetch_ahead(words: Words, base: Ints, slots: Ints, event: int) -> None:
    """Have the first words of an event's entities brought from memory, while the events before it are at work."""
    for column in range(slots.shape[1]):
        slot = slots[event, column]
        if slot >= 0:
            for word in range(base[slot], base[slot] + FETCHED_WORDS, LINE_WORDS):
                prefetch(words, word)


@uncounted(_SIGNATURE, cache=True)
def step(  # one call a batch: what it walks over is laid out by `plan`, what it walks on by `entities`
    words: Words,
    numbers: Numbers,
    base: Ints,
    aggregates: Ints,
    runs: Ints,
    first_runs: Ints,
    features: Ints,
    terms: Ints,
    streams: Ints,
    ages: Ints,
    stream: Ints,
    visible: Ints,
    codes: Ints,
    slots: Ints,
    values: Numbers,
    value_codes: Ints,
    row_of: Ints,
    rows: Any,
    became: Ints,
    touched: Ints,
) -> int:
    """
    Take n records in the order of the log: drop copies, answer questions, fold. Returns how many slots were touched.

    `words` and `numbers` are one memory; `base` has the first word of each slot. For each record: its stream (-1: undecodable), visible
    time, hash of its id, slots of its entities by view (-1: none) and last that of the memory of ids, values by column (and the same memory
    as integers), and the row that it asks for (-1: none). Written: `rows`, what `became` of each record, and the `touched` slots, repeated
    ones included.
    """
    n_touched = 0
    for i in range(len(stream)):
        if i + EVENTS_AHEAD < len(stream):
            _fetch_ahead(words, base, slots, i + EVENTS_AHEAD)
        if stream[i] < 0:
            became[i] = REFUSED
            continue
        horizon, most = streams[stream[i], 1], streams[stream[i], 2]
        memory = slots[i, len(ages)]
        if _is_copy(words, base[memory], horizon, most, visible[i], codes[i]):
            became[i] = DUPLICATE
            continue
        became[i] = APPLIED
        touched[n_touched] = memory
        n_touched += 1
        if row_of[i] >= 0:
            _answer(words, numbers, base, slots, i, aggregates, features, terms, ages, visible[i], rows, row_of[i])
        for run in range(first_runs[stream[i]], first_runs[stream[i] + 1]):
            slot = slots[i, runs[run, 1]]
            if slot < 0:
                continue
            entity = base[slot]
            newest = words[entity + NEWEST]
            if newest != NEVER and visible[i] < newest - streams[stream[i], 0]:
                became[i] = LATE
                continue
            _fold(words, numbers, entity, aggregates, runs[run, 2], runs[run, 3], visible[i], values, value_codes, i)
            touched[n_touched] = slot
            n_touched += 1
    return n_touched


@uncounted()
def evaluate(
    words: Words,
    numbers: Numbers,
    base: Ints,
    slots: Ints,
    aggregates: Ints,
    features: Ints,
    terms: Ints,
    ages: Ints,
    asked: int,
    rows: Any,
) -> None:
    """What a question at `asked` would be answered with, for each row of `slots` (n, V); nothing is folded."""
    for row in range(len(slots)):
        _answer(words, numbers, base, slots, row, aggregates, features, terms, ages, asked, rows, row)

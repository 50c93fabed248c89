"""
What is read of entities from a real store is what a question of the fold would be answered with.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from driftline.contracts.avro import Codec, column
from driftline.contracts.messages import Source
from driftline.contracts.topics import Topics
from driftline.errors import Invalid, Rejected
from driftline.features.events import Decoder
from driftline.features.murmur2 import partitions_of
from driftline.features.tiles import ROW_FORMAT
from driftline.features.views import Views
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Table, Varlen
from driftline.stream.ledger import LEDGER, Entry, RedisLedger, prefix_of
from driftline.stream.online import OnlineReader
from driftline.stream.store import Store

FILE = """
from driftline import Pipeline, Stream, View, f

visits = Stream("visit.avsc", topic="visits", id="id", key="guest", time="at")
guest = View(of=visits, by="guest", seen_1h=f.count("1h"), spent_1d=f.sum("spent", "1d"), most_1d=f.max("spent", "1d"))
room = View(of=visits, by=["house", "guest"], last_spent=f.last("spent", within="7d"))
house = View(of=visits, by="house", broadcast=True, mean_1d=f.mean("spent", "1d"), guests_1d=f.distinct("guest", "1d", most=64))
pipeline = Pipeline("inn", owner="o", question=visits, inputs=[guest, f.value("spent"), room, house], retention="9d")
"""
FIELDS = {
    "id": "string",
    "at": {"type": "long", "logicalType": "timestamp-millis"},
    "guest": "string",
    "house": "string",
    "spent": "double",
}
SCHEMA = {"type": "record", "name": "Visit", "fields": [{"name": name, "type": kind} for name, kind in FIELDS.items()]}
START_MS, APART_MS, VISITS = 1_700_000_000_000, 97_000, 600
GUESTS, HOUSES = [f"g{n}" for n in range(40)], ["h0", "h1", "h2"]
PARTITIONS = 3


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Views at home and broadcast, one of them of a composite key."""
    root = tmp_path_factory.mktemp("pipelines")
    (root / "inn").mkdir()
    (root / "inn" / "pipeline.py").write_text(FILE)
    (root / "inn" / "visit.avsc").write_text(json.dumps(SCHEMA))
    return load_pipeline("inn", root)


def visits(partition: int, pipeline: Pipeline) -> Table:
    """The log of one partition: its own visits, and copies of all others. The last ones ask of every guest in every house."""
    chance = np.random.default_rng(7)
    pairs = [(guest, house) for guest in GUESTS for house in HOUSES]
    guests = [GUESTS[n] for n in chance.integers(0, 30, VISITS)] + [guest for guest, _ in pairs]
    houses = [HOUSES[n] for n in chance.integers(0, 3, VISITS)] + [house for _, house in pairs]
    n = VISITS + len(pairs)
    times = START_MS + APART_MS * np.minimum(np.arange(n), VISITS)
    fields = {
        "id": [f"v{number}" for number in range(n)],
        "at": times.tolist(),
        "guest": guests,
        "house": houses,
        "spent": np.round(chance.gamma(2, 30, n), 2).tolist(),
    }
    body = Codec(dict(pipeline.streams[0].schema)).encode({name: column(FIELDS[name], values) for name, values in fields.items()})
    keys = Varlen.of(guests)
    columns = {"source": np.full(n, Source.UPSTREAM), "visible": times, "time": times, "id": Varlen.of(fields["id"]), "key": keys}
    return Table("event", np.arange(n), {**columns, "home": partitions_of(keys, PARTITIONS) == partition, "body": body})


class Inn:
    """The state of all partitions in a store, and what the fold answered at the end."""

    def __init__(self, pipeline: Pipeline, url: str) -> None:
        self.pipeline, self.url = pipeline, url
        self.group = f"inn-{uuid.uuid4().hex[:8]}"
        self.wanted: dict[tuple[str, str], np.ndarray] = {}
        topic = Topics.of(pipeline).events.name
        self.entry = Entry(1, {}, None, "here", {topic: PARTITIONS}, pipeline.digest, ROW_FORMAT)

    async def fill(self) -> None:
        """Fold, and keep what the service keeps."""
        for partition in range(PARTITIONS):
            table, views = visits(partition, self.pipeline), Views(self.pipeline)
            decoder = Decoder(self.pipeline, views.plan)
            before, asked = decoder.decode(table.take(table.offsets < VISITS)), decoder.decode(table.take(table.offsets >= VISITS))
            for events in (before, asked):
                names = list(views.absent(events))
                views.entities.add(names, [None] * len(names))
            rows = views.entities.rows(views.fold(before).touched)
            answers = views.fold(asked).rows
            for place, row in zip(asked.questions.places.tolist(), answers, strict=True):
                number = int(asked.table.offsets[place]) - VISITS
                self.wanted[GUESTS[number // 3], HOUSES[number % 3]] = row
            await self.commit(partition, self.entry, rows)

    async def commit(self, partition: int, entry: Entry, rows: dict[bytes, bytes | None]) -> None:
        """As the worker does."""
        ledger = RedisLedger(Store(self.url), self.group, partition)
        await ledger.open()
        await ledger.commit(entry, rows)
        await ledger.close()


@pytest.fixture
async def inn(pipeline: Pipeline, redis_url: str) -> Inn:
    """Filled."""
    made = Inn(pipeline, redis_url)
    await made.fill()
    return made


@pytest.fixture
async def reader(inn: Inn) -> AsyncIterator[OnlineReader]:
    """Of the inn."""
    store = Store(inn.url)
    yield OnlineReader(store, inn.pipeline, inn.group)
    await store.close()


def all_asks() -> Iterator[tuple[str, str]]:
    """Every guest in every house, those too who never came."""
    yield from ((guest, house) for guest in GUESTS for house in HOUSES)


def asked_of(*pairs: tuple[str, str]) -> dict[str, list[bytes]]:
    """All views, in no order."""
    return {
        "house": [house.encode() for _, house in pairs],
        "room": [f"{house}\x1f{guest}".encode() for guest, house in pairs],
        "guest": [guest.encode() for guest, _ in pairs],
    }


ONE = asked_of(("g1", "h1"))


async def test_an_answer_is_what_the_fold_answers_at_that_time(inn: Inn, reader: OnlineReader):
    """
    Every entity of every partition, known or not, features and ages, bit by bit; what the question itself brings is missing.
    """
    asks = list(all_asks())
    assert len(inn.wanted) == len(asks) == 120
    answers = await reader.read(asked_of(*asks), START_MS + APART_MS * VISITS)
    wanted = np.stack([inn.wanted[one] for one in asks])
    spent = inn.pipeline.layout.names.index("spent")
    wanted[:, spent] = np.nan
    assert answers.features.tobytes() == wanted[:, : len(inn.pipeline.layout.names)].tobytes()
    assert answers.ages.tobytes() == wanted[:, len(inn.pipeline.layout.names) :].tobytes()
    assert np.isfinite(answers.ages[:, 0]).sum() == 90 and (answers.features[~np.isfinite(answers.ages[:, 0]), 0] == 0).all()


async def test_one_view_may_be_asked_alone(inn: Inn, reader: OnlineReader):
    """
    What was not asked for is missing; a broadcast view is the same wherever it is read.
    """
    asked = START_MS + APART_MS * VISITS
    whole = await reader.read(ONE, asked)
    alone, other = [await reader.read({name: ONE[name]}, asked) for name in ("house", "guest")]
    layout = inn.pipeline.layout
    house, guest = (
        np.array([at for at, view in enumerate(layout.view_of) if view == layout.views.index(name)]) for name in ("house", "guest")
    )
    assert alone.features[0, house].tobytes() == whole.features[0, house].tobytes()
    assert other.features[0, guest].tobytes() == whole.features[0, guest].tobytes()
    assert np.isnan(alone.features[0, guest]).all() and np.isnan(other.features[0, house]).all()
    assert np.isnan(alone.ages[0, layout.views.index("guest")])


async def test_it_is_asked_as_of_a_time(reader: OnlineReader):
    """
    Windows go on with the time that is asked for, and the age is told from there.
    """
    end = START_MS + APART_MS * (VISITS - 1)
    first, later = [(await reader.read({"house": [b"h1"]}, end + wait)).ages[0] for wait in (1_000_000, 2_000_000)]
    assert np.nanmax(later - first) == 1_000.0
    gone = await reader.read({"guest": [b"g1"]}, end + 30 * 86_400_000)
    assert gone.features[0, :2].tolist() == [0.0, 0.0]


async def test_rows_that_are_not_to_be_trusted_are_not_answered_from(inn: Inn, reader: OnlineReader):
    """
    Of another definition or format, without their ledger, damaged: each in its own words.
    """
    await reader.read(ONE, START_MS)
    store, home = Store(inn.url), int(partitions_of(Varlen.of([b"g1"]), PARTITIONS)[0])
    key = prefix_of(inn.group, home)
    old = Entry(2, {}, None, "here", inn.entry.partitions, inn.pipeline.digest, ROW_FORMAT - 1)
    await inn.commit(home, old, {})
    with pytest.raises(Rejected, match="another definition or format"):
        await reader.read(ONE, START_MS)
    await store.ask(("DEL", key + LEDGER))
    with pytest.raises(Rejected, match="no ledger beside its rows"):
        await reader.read(ONE, START_MS)
    await inn.commit(home, inn.entry, {b"guest:g1": b"\xff" * 40})
    with pytest.raises(Invalid, match="a row of the view guest"):
        await reader.read(ONE, START_MS)
    await store.ask(("SET", key + LEDGER, b"rubbish"))
    with pytest.raises(Invalid, match=r"the ledger of .* cannot be read"):
        await reader.read(ONE, START_MS)
    await store.close()


async def test_what_cannot_be_asked_is_refused(reader: OnlineReader):
    """
    A view that there is not, parts that do not fit, entities of two keys; and a group that has kept nothing.
    """
    for bad, words in (
        ({"cellar": [b"x"]}, "there is no view 'cellar'; there are"),
        ({"room": [b"g1"]}, "of 2 parts, house, guest, not of 1"),
        ({"room": [b"h1\x1fg1"], "guest": [b"g2"]}, "have one key"),
        ({"room": [b"h1\x1fg1"], "guest": [b"g1", b"g2"]}, "one entity a question"),
    ):
        with pytest.raises(Invalid, match=words):
            await reader.read(bad, START_MS)


async def test_a_group_that_has_kept_nothing_is_told(pipeline: Pipeline, redis_url: str):
    """
    That may change.
    """
    store = Store(redis_url)
    with pytest.raises(Rejected, match="nobody has kept nothing yet"):
        await OnlineReader(store, pipeline, "nobody").read(ONE, START_MS)
    await store.close()

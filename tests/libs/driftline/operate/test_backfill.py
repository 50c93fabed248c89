"""
Rows that were served and rows of the past are the same bytes: intake and feature run on a real broker and a real store over two pipelines
of several streams, and the command makes their rows again, from files with the same records and from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from driftline.cli import app
from driftline.clock import SystemClock
from driftline.contracts.messages import ClockRecord, End, Writer, as_messages
from driftline.contracts.messages import Source as Log
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Recoverable
from driftline.local.player import load_applications
from driftline.local.stack import Stack
from driftline.operate.addresses import Addresses, environment_of
from driftline.pipeline import Pipeline, load_pipeline
from driftline.settings import read
from driftline.stream.batch import Table
from driftline.stream.kafka import LogReader, Publisher, committed_metadata, create_topics, ensure_topics
from driftline.stream.ledger import decoded, prefix_of

ROOT = Path(__file__).parents[4]
FLIGHTS = ROOT / "pipelines" / "flights"
START_MS = 1_700_000_000_000
PARTITIONS = 2  # of upstream topics and of data topics
DAYS = 4
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SHOPS = """
from driftline import Label, Pipeline, Stream, View, f

asks = Stream("ask.avsc", topic="TOPIC-asks", id="ask_id", key="card", time="at", lateness="2s", duplicates=("1h", 8))
facts = Stream("fact.avsc", topic="TOPIC-facts", id="fact_id", key="card", time="at", visible="seen_at", lateness="2s")

card = View(
    of=[asks, facts],
    by="card",
    asked_1m=f.count(asks, "1m"),
    std_10m=f.std("amount", "10m"),
    last_amount=f.last("amount", within="10m"),
    kinds_10m=f.distinct("kind", "10m", most=8),
)
shop = View(
    of=facts,
    by=["shop", "aisle"],
    broadcast=True,
    shop_sum=f.sum("amount", "1m"),
    shop_ewma=f.ewma("amount", "1m"),
    shop_before=f.count(facts, "2m", ending="1m ago"),
)
pipeline = Pipeline(
    "NAME",
    owner="somebody@example.org",
    question=asks,
    inputs=[card, f.value("price"), shop],
    label=Label("good", of=facts, when=facts.amount > 0, horizon="1d"),
    slices=["shop"],
    tick="10s",
    window="1d",
)
"""
SCHEMAS: dict[str, dict[str, Any]] = {
    "ask": {"ask_id": "string", "at": TIME, "card": "string", "shop": "string", "aisle": "int", "price": ["null", "double"]},
    "fact": {
        "fact_id": "string",
        "ask_id": "string",
        "at": TIME,
        "seen_at": TIME,
        "card": "string",
        "shop": "string",
        "aisle": "int",
        "amount": ["null", "double"],
        "kind": ["null", "string"],
    },
}
Frames = dict[tuple[str, int], pl.DataFrame]  # what each partition of each upstream topic holds
ABOUT = ["id", "key", "time", "visible", "layout", "row"]


@dataclass(frozen=True)
class Served:
    """A pipeline whose services have served all that was published, and files of the same records."""

    pipeline: Pipeline
    files: list[str]  # as options of the command
    rows: pl.DataFrame  # as they are on the topic
    refused: int

    def command(self, *arguments: str) -> Result:
        """The command, in the environment that the fixture has set."""
        return CliRunner().invoke(app, ["backfill", self.pipeline.name, *arguments])

    def backfilled(self, out: Path, *arguments: str) -> pl.DataFrame:
        """What the command makes."""
        done = self.command("--out", str(out), *arguments)
        assert done.exit_code == 0, done.output
        return pl.read_parquet(out)


# ---- two pipelines --------------------------------------------------------------------------------------------------------


def flights_in(folder: Path, name: str) -> Frames:
    """Four days of flights under a name of their own; records of a topic go round its partitions."""
    folder.mkdir(parents=True)
    for place in FLIGHTS.iterdir():
        if place.suffix in (".py", ".avsc"):
            text = place.read_text().replace('"flights",\n    owner', f'"{name}",\n    owner')
            (folder / place.name).write_text(re.sub(r'topic="(\w+)"', rf'topic="{name}-\1"', text))
    played = load_applications(FLIGHTS, DAYS, date(2013, 1, 1))
    return {
        (f"{name}-{topic}", partition): frame.gather_every(PARTITIONS, partition)
        for topic, frame in played.topics.items()
        for partition in range(PARTITIONS)
    }


def shops_in(folder: Path, name: str) -> Frames:
    """Questions and facts of few cards and shops: ties, records out of order and too late, ids that come again, nulls, broken ones."""
    folder.mkdir(parents=True)
    (folder / "pipeline.py").write_text(SHOPS.replace("NAME", name).replace("TOPIC", name))
    for message, fields in SCHEMAS.items():
        schema = {"type": "record", "name": message.title(), "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}
        (folder / f"{message}.avsc").write_text(json.dumps(schema))
    draw = np.random.default_rng(5)
    return {
        (f"{name}-{topic}s", partition): records_of(draw, topic, partition, 1_500)
        for topic in ("ask", "fact")
        for partition in range(PARTITIONS)
    }


def records_of(draw: np.random.Generator, message: str, partition: int, n: int) -> pl.DataFrame:
    """What one partition holds, in the order of its arrival."""
    visible = START_MS + np.cumsum(draw.integers(0, 3, n) * 100)
    visible[draw.random(n) < 0.05] -= 1_500
    visible[draw.random(n) < 0.03] -= 9_000
    ids = np.where(draw.random(n) < 0.05, np.arange(n) - 1, np.arange(n))
    cards = draw.integers(0, 8, n)
    cards[ids != np.arange(n)] = cards[ids[ids != np.arange(n)]]
    times = {"at": visible} if message == "ask" else {"at": visible - 500, "seen_at": visible}
    every = {
        f"{message}_id": [f"{message}-{partition}-{one}" for one in ids],
        "ask_id": [f"ask-{partition}-{one}" for one in ids],
        **{name: pl.Series(column).cast(pl.Datetime("ms", "UTC")) for name, column in times.items()},
        "card": [None if broken else f"card-{one}" for one, broken in zip(cards, draw.random(n) < 0.005, strict=True)],
        "shop": [f"shop-{one}" for one in draw.integers(0, 3, n)],
        "aisle": draw.integers(0, 3, n),
        **{name: pl.Series(draw.integers(-40, 200, n) / 4).set(pl.Series(draw.random(n) < 0.1), None) for name in ("price", "amount")},
        "kind": draw.choice(["refund", "sale", None], n).tolist(),
    }
    return pl.DataFrame({name: every[name] for name in SCHEMAS[message]})


def encoded(pipeline: Pipeline, topic: str, frame: pl.DataFrame, registry: Registry) -> Sequence[bytes]:
    """As the upstream applications write: weather and shops in JSON, flights in Avro."""
    stream = next(stream for stream in pipeline.streams if stream.topic == topic)
    if "origin" in frame.columns:
        schema_id = registry.register(f"{topic}-value", dict(stream.schema))
        return load_applications(FLIGHTS, 1, date(2013, 1, 1)).encode(topic.partition("-")[2], frame, stream.schema, schema_id)
    plain = frame.with_columns(pl.col(pl.Datetime).cast(pl.Int64))
    return [line.encode() for line in plain.select(pl.struct(pl.all()).struct.json_encode()).to_series()]


# ---- served ---------------------------------------------------------------------------------------------------------------


async def serve(stack: Stack, folder: Path, patch: pytest.MonkeyPatch, frames_in: Callable[[Path, str], Frames]) -> Served:
    """Publish all records, and let intake and feature take them."""
    name = f"b{uuid4().hex[:8]}"
    frames = frames_in(folder / "pipelines" / name, name)
    settings = {f"DRIFTLINE_{server}": stack.environment()[f"DRIFTLINE_{server}"] for server in ("KAFKA", "REDIS", "REGISTRY")}
    addresses = Addresses(*settings.values(), folder)
    settings |= {"DRIFTLINE_PIPELINES": str(folder / "pipelines"), "DRIFTLINE_REPLAY": "true"}
    for variable, value in settings.items():
        patch.setenv(variable, value)
    pipeline, registry = load_pipeline(name), Registry(addresses.registry)
    topics = Topics.of(pipeline)
    await ensure_topics(addresses.kafka, topics, PARTITIONS)
    for topic in dict.fromkeys(topic for topic, _ in frames):
        await create_topics(addresses.kafka, [NewTopic(topic, PARTITIONS, 1)])
    await publish(addresses.kafka, {place: encoded(pipeline, place[0], frame, registry) for place, frame in frames.items()})
    visible = {stream.topic: stream.visible for stream in pipeline.streams}
    latest = max(int(frame[visible[topic]].cast(pl.Datetime("ms", "UTC")).cast(pl.Int64).max()) for (topic, _), frame in frames.items())  # type: ignore[arg-type]
    ends = tuple(End(topic, partition, frame.height) for (topic, partition), frame in frames.items())
    clock = ClockRecord((latest // pipeline.tick_ms + 1) * pipeline.tick_ms, 0, ends, True)
    player = Publisher(addresses.kafka, topics, registry, Writer.PLAYER)
    await player.start()
    await player.send(as_messages("clock", "clock", [clock], source=Log.CLOCK, offsets=[0], indexes=[0]))
    await player.stop()
    await run(pipeline, addresses, {(one.topic, one.partition): one.offset for one in ends})
    letters = await tables(addresses, topics.dead_letters, "dead_letter")
    rows = pl.concat([as_frame(number, table) for number, table in (await tables(addresses, topics.features, "row")).items()])
    return Served(pipeline, files_of(folder, frames), rows, sum(map(len, letters.values())))


async def publish(kafka: str, values: Mapping[tuple[str, int], Sequence[bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for (topic, partition), some in values.items():
        for sent in [await producer.send(topic, value, partition=partition) for value in some]:
            await sent
    await producer.stop()


async def run(pipeline: Pipeline, addresses: Addresses, upstream: Mapping[tuple[str, int], int]) -> None:
    """Intake and feature, until all upstream records are on the log, and all of the log is folded."""
    parts: list[Any] = []
    for service in ("intake", "feature"):
        module = importlib.import_module(f"services.{service}.app")
        parts += module.build(read(module.Settings, environment_of(addresses, pipeline.name)), SystemClock())._parts
    tasks = [asyncio.create_task(part.run()) for part in parts]
    consumer, client = AIOKafkaConsumer(bootstrap_servers=addresses.kafka), Redis.from_url(addresses.redis)
    await consumer.start()
    log = [TopicPartition(f"{pipeline.name}-events", number) for number in range(PARTITIONS)]
    try:
        async with asyncio.timeout(120):
            while True:
                assert [task for task in tasks if task.done() and task.exception()] == []
                taken: Mapping[tuple[str, int], tuple[int, str]] = {}
                with contextlib.suppress(Recoverable):  # a new cluster has no coordinator yet
                    taken = await committed_metadata(addresses.kafka, f"{pipeline.name}-intake")
                ends = await consumer.end_offsets(log)
                ledgers = [await client.get(prefix_of(f"{pipeline.name}-feature", number) + b"ledger") for number in range(PARTITIONS)]
                stands = [0 if ledger is None else decoded(ledger).next for ledger in ledgers]
                if {place: offset for place, (offset, _) in taken.items()} == upstream and stands == [ends[at] for at in log]:
                    return
                await asyncio.sleep(0.2)
    finally:
        await consumer.stop()
        await client.aclose()
        for part in parts:
            part.stop()
        await asyncio.gather(*tasks)


async def tables(addresses: Addresses, topic: Topic, message: str) -> dict[int, Table]:
    """First copies of one kind of message, by partition."""
    reader = LogReader(addresses.kafka, topic, Registry(addresses.registry))
    await reader.start()
    try:
        return {number: batch.tables[message] for number, batch in (await reader.read_to()).items() if message in batch.tables}
    finally:
        await reader.stop()


def as_frame(partition: int, rows: Table) -> pl.DataFrame:
    times = {name: pl.Series(rows[name]).cast(pl.Datetime("ms", "UTC")) for name in ("time", "visible")}
    texts = {name: rows[name].texts() for name in ("id", "key", "layout")}
    return pl.DataFrame(
        {"partition": pl.Series([partition] * len(rows), dtype=pl.Int32), "offset": rows["event_offset"]}
        | texts
        | times
        | {"row": rows["row"].tolist()}
    )


def files_of(folder: Path, frames: Frames) -> list[str]:
    """The same records in files, in row groups of their own sizes."""
    options = []
    for number, ((topic, partition), frame) in enumerate(frames.items()):
        file = folder / f"{topic}-{partition}.parquet"
        frame.write_parquet(file, row_group_size=100 * (number + 1))
        options += ["--file", f"{topic}={file}"]
    return options


@pytest.fixture(scope="module", params=[flights_in, shops_in], ids=["flights", "shops"])
def served(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        yield asyncio.run(serve(stack, tmp_path_factory.mktemp("backfill"), patch, request.param))


# ---- the same -------------------------------------------------------------------------------------------------------------


def test_rows_of_files_are_those_that_were_served_byte_for_byte(served: Served, tmp_path: Path):
    """
    Each with its id, its key, its times and the version of its layout.
    """
    rows = served.backfilled(tmp_path / "rows", *served.files, "--as-arrived")
    assert served.rows.height > 1_000
    assert rows.select(ABOUT).sort("id", "visible").equals(served.rows.select(ABOUT).sort("id", "visible"))


def test_as_many_records_are_refused_as_went_to_the_dead_letters(served: Served, tmp_path: Path):
    """
    Some of the shops' have no key; each kind is told with its first record.
    """
    said = served.command("--out", str(tmp_path / "rows"), *served.files, "--as-arrived").stdout
    assert f"{served.refused:,} refused)" in said
    assert ('refused (contract): "card" is null; Ask says string; the first is record' in said) == (served.refused > 0)


def test_rows_of_the_log_are_those_that_were_served_byte_for_byte(served: Served, tmp_path: Path):
    """
    At the same places of the same partitions.
    """
    rows = served.backfilled(tmp_path / "rows")
    order = ["partition", "offset"]
    assert rows.select(order + ABOUT).sort(order).equals(served.rows.select(order + ABOUT).sort(order))


def test_rows_of_a_stretch_of_the_log_are_a_part_of_these(served: Served, tmp_path: Path):
    """
    Offsets choose which rows are kept; what came before them is folded all the same.
    """
    mine = served.rows.filter(pl.col("partition") == 1)
    first, end = mine["offset"].sort()[[200, 400]]
    rows = served.backfilled(tmp_path / "rows", "--partition", "1", "--from-offset", str(first), "--to-offset", str(end))
    wanted = mine.filter(pl.col("offset").is_between(first, end, closed="left"))
    assert rows.height == 200
    assert rows.select(wanted.columns).sort("offset").equals(wanted.sort("offset"))


def test_rows_of_a_stretch_of_time_are_the_same_from_files_and_from_the_log(served: Served, tmp_path: Path):
    """
    The digest says so, too: it depends on neither order nor partitions.
    """
    first, end = (str(one) for one in served.rows["visible"].sort()[[300, 700]].dt.strftime("%Y-%m-%dT%H:%M:%S.%3f"))
    said = [
        served.command("--out", str(tmp_path / place), "--from", first, "--to", end, *options).stdout
        for place, options in (("files", [*served.files, "--as-arrived"]), ("log", []))
    ]
    digests = [re.search("digest of the rows: ([0-9a-f]{32})", one)[1] for one in said]  # type: ignore[index]
    files, log = (pl.read_parquet(tmp_path / place).select(ABOUT).sort("id", "visible") for place in ("files", "log"))
    assert 0 < files.height < served.rows.height
    assert files.equals(log)
    assert digests[0] == digests[1]


def test_rows_are_compared_with_those_that_were_served(served: Served, tmp_path: Path):
    """
    Of files and of the log; exit status 0 says that all are equal.
    """
    for place, options in (("files", [*served.files, "--as-arrived"]), ("log", [])):
        done = served.command("--out", str(tmp_path / place), "--verify", *options)
        assert done.exit_code == 0, done.output
        assert f"{served.rows.height:,} rows are equal to those served, 0 differ\n" in done.stdout


def test_a_difference_is_told_with_its_event_and_its_feature(served: Served, tmp_path: Path):
    """
    A source without its first records makes other rows, and the first that differs is told in words; exit status 1.
    """
    question = served.pipeline.question
    files = [option.split("=")[1] for option in served.files if option.startswith("/") or "=" in option]
    less = []
    for file in files:
        topic, partition = Path(file).stem.rsplit("-", 1)
        frame = pl.read_parquet(file)
        other = tmp_path / Path(file).name
        (frame if topic == question.topic else frame.tail(-frame.height // 2)).write_parquet(other)
        less += ["--file", f"{topic}={other}"]
        assert partition in ("0", "1")
    done = served.command("--out", str(tmp_path / "rows"), "--verify", "--as-arrived", *less)
    assert done.exit_code == 1, done.output
    assert re.search(rf"{served.pipeline.name}-features\[\d\]: .* \(event offset \d+\): \w+ was .*, backfilled ", done.stdout)

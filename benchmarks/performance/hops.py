"""
One hop at a time: driftline's services, each on topics that are full before it starts, and the peers on the same events.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic

from driftline.contracts.avro import Codec
from driftline.contracts.messages import ClockRecord, End, Writer, as_messages
from driftline.contracts.messages import Source as Log
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import DriftlineError
from driftline.local.child import Child
from driftline.local.stack import Stack
from driftline.stream.batch import Varlen
from driftline.stream.kafka import LogReader, Publisher, create_topics, ensure_topics

from .bundles import Champion
from .meter import Cost, Meter
from .payments import MODEL_ROWS, PIPELINES, RECIPE, ROW_SCHEMA, SCORE_SCHEMA, Payments, model, payments_of, pipeline

PEERS = Path(__file__).parents[1] / "peers"
PATIENCE_S = 300.0
BATCH_BYTES = 900_000
TICK_MS = 3_600_000
SERVICES = {"intake": "payments-events", "feature": "payments-features", "inference": "payments-predictions"}


class Differs(DriftlineError):
    """Outputs that are not what they should be: no time counts then."""


@dataclass(frozen=True)
class Peer:
    """A program in benchmarks/peers, and how it is asked. `share` of the events is what it gets: the slow ones need not do all."""

    name: str
    file: str
    hops: Sequence[str]
    way: str = ""
    share: float = 1.0


FLOORS = [Peer("aiokafka, whole batches", "floor_aiokafka.py", ["echo"]), Peer("confluent-kafka, batches", "floor_confluent.py", ["echo"])]
ALL = ["echo", "feature", "score"]
PEERS_ALL = [
    *FLOORS,
    Peer("Bytewax", "bytewax_hop.py", ALL, share=0.4),
    Peer("Bytewax, batched", "bytewax_hop.py", ["score"], way="polled", share=0.4),
    Peer("FastStream, batch", "faststream_hop.py", ALL, way="batch", share=0.3),
    Peer("Quix Streams", "quix_hop.py", ALL, way="at-least-once", share=0.3),
    Peer("Quix Streams, exactly-once", "quix_hop.py", ["feature"], way="exactly-once", share=0.3),
    Peer("Faust", "faust_hop.py", ALL, way="each", share=0.05),
    Peer("Faust, take", "faust_hop.py", ALL, way="take", share=0.05),
    Peer("FastStream, per message", "faststream_hop.py", ALL, way="each", share=0.05),
]


@dataclass
class Bench:
    """A stack with its topics filled: what every measurement begins from."""

    stack: Stack
    payments: Payments
    graph: bytes
    peers_python: str
    kafka: str = field(init=False)

    def __post_init__(self) -> None:
        self.kafka = self.stack.environment()["DRIFTLINE_KAFKA"]

    @property
    def servers(self) -> dict[str, int]:
        """Broker and store, by name."""
        assert self.stack.kafka is not None and self.stack.valkey is not None
        return {"broker": self.stack.kafka.pid, "store": self.stack.valkey.pid}


async def fill(kafka: str, topic: str, keys: Sequence[bytes], values: Sequence[bytes], time_ms: int) -> None:
    """Make a topic of one partition with these records on it."""
    await create_topics(kafka, [NewTopic(topic, 1, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=kafka, max_batch_size=BATCH_BYTES, max_request_size=1_048_576, acks="all")
    await producer.start()
    try:
        await publish(producer, topic, 0, zip(keys, values, strict=True), time_ms)
    finally:
        await producer.stop()


async def publish(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Iterable[tuple[bytes | None, bytes]], time_ms: int | None = None
) -> None:
    """Keys and values in whole batches, each acked before the next."""
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(timestamp=time_ms, key=key, value=value) is None:
            await (await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(timestamp=time_ms, key=key, value=value)
    await (await producer.send_batch(batch, topic, partition=partition))


async def read(kafka: str, topic: str, n: int) -> list[Any]:
    """At least `n` records of the only partition of `topic`, as soon as there are so many; committed ones alone."""
    at = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([at])
        consumer.seek(at, 0)
        found: list[Any] = []
        while len(found) < n:
            polled = await consumer.getmany(at, timeout_ms=20_000, max_records=50_000)
            if not polled:
                raise Differs(f"{topic} holds {len(found)} records, not {n}")
            found += polled[at]
        return found
    finally:
        await consumer.stop()


# ---- driftline ------------------------------------------------------------------------------------------------------------


class Driftline:
    """The three services of the pipeline `payments`, one after the other."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.pipeline = pipeline()
        self._topics = Topics.of(self.pipeline)
        self.champion = Champion(self.pipeline, bench.stack.folder)
        self.environment = {"DRIFTLINE_PIPELINES": str(PIPELINES), "DRIFTLINE_REPLAY": "true", **self.champion.environment}

    async def prepare(self) -> None:
        """Topics, upstream records, a model in force from the first tick on, and a clock that says how far the log goes."""
        bench, payments, stream = self._bench, self._bench.payments, self.pipeline.streams[0]
        registry = Registry(bench.stack.environment()["DRIFTLINE_REGISTRY"])
        await ensure_topics(bench.kafka, self._topics, 1)
        schema_id = await asyncio.to_thread(registry.register, f"{stream.topic}-value", dict(stream.schema))
        values = payments.values(dict(stream.schema), schema_id)
        await fill(bench.kafka, stream.topic, payments.keys, values, int(payments.times[-1]))
        learned = payments_of(MODEL_ROWS, 11).rows
        await self.champion.deploy(self.champion.put(bench.graph, RECIPE, learned, int(payments.times[0])), bench.kafka, registry)
        clock = ClockRecord(payments.end_ms, 1, (End(stream.topic, 0, payments.n),), True)
        player = Publisher(bench.kafka, self._topics, registry, Writer.PLAYER)
        await player.send(as_messages("clock", "clock", [clock], source=Log.CLOCK, offsets=[0], indexes=[0]))
        await player.stop()

    async def measure(self, service: str) -> Cost:
        """Start a service on what the one before it left, and wait until it has done all of it."""
        bench = self._bench
        command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", "payments", "--log-level", "warning"]
        child = bench.stack.spawn(service, command, self.environment)
        try:
            meter = Meter(bench.kafka, SERVICES[service], 1, {"client": child.pid, **bench.servers})
            return await meter.until(bench.payments.n, PATIENCE_S)
        finally:
            await asyncio.to_thread(end, child)

    async def check_rows(self) -> None:
        """Every payment has its row, as the plain program has it. Raises Differs."""
        rows = await self._table("features", "row")
        _same(self.pipeline.layout.matrix(rows["row"]), _ids(rows["id"]), self._bench.payments.rows, self._bench.payments.ids(), "rows")

    async def check(self) -> None:
        """Every payment has its row and its score, as the plain program has them. Raises Differs."""
        await self.check_rows()
        scores = await self._table("predictions", "prediction")
        _same(np.asarray(scores["score"])[:, None], _ids(scores["id"]), expected_scores(self._bench), self._bench.payments.ids(), "scores")

    async def _table(self, kind: str, message: str) -> Any:
        registry = Registry(self._bench.stack.environment()["DRIFTLINE_REGISTRY"])
        reader = LogReader(self._bench.kafka, self._topics[kind], registry)
        await reader.start()
        try:
            return (await reader.read_to())[0].tables[message]
        finally:
            await reader.stop()


def _ids(column: Varlen) -> list[str]:
    return column.texts()


def end(child: Child) -> None:
    """Let it drain."""
    child.terminate()
    child.wait(20)


def _same(found: npt.NDArray[Any], ids: Sequence[str], wanted: npt.NDArray[Any], all_ids: Sequence[str], what: str) -> None:
    if list(ids) != list(all_ids):
        raise Differs(f"{what}: {len(ids)} of {len(all_ids)}, or not in their order")
    different = ~np.isclose(found.astype(np.float32), wanted, rtol=0, atol=0).all(axis=1)
    if different.any():
        raise Differs(f"{what}: {int(different.sum())} of {len(ids)} differ, the first is {found[different][0]} for {wanted[different][0]}")


def expected_scores(bench: Bench) -> npt.NDArray[np.float32]:
    """What the model says of the plain program's rows, float32 (n, 1)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bench.graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"rows": bench.payments.rows})[0], np.float32).reshape(-1, 1)


# ---- the peers ------------------------------------------------------------------------------------------------------------


async def measure_peer(bench: Bench, peer: Peer, hop: str, number: int) -> Cost:
    """Start a peer on a topic that is full, wait for all its outputs, and compare them. Raises Differs, TooSlow."""
    n = max(2_000, int(peer.share * bench.payments.n))
    payments = payments_of(n, bench.payments.seed)
    source, target = f"peer-{'row' if hop == 'score' else 'payment'}-{n}", f"peer-out-{number}"
    await _filled(bench, source, hop, payments)
    await create_topics(bench.kafka, [NewTopic(target, 1, 1)])
    with tempfile.TemporaryDirectory(dir=bench.stack.folder) as folder:
        command = [bench.peers_python, str(PEERS / peer.file), "--hop", hop, "--kafka", bench.kafka, "--source", source]
        command += ["--target", target, "--redis", bench.stack.environment()["DRIFTLINE_REDIS"], "--folder", folder]
        command += ["--model", str(bench.stack.folder / "model.onnx"), *(["--way", peer.way] if peer.way else [])]
        child = bench.stack.spawn(f"peer-{number}", command)
        try:
            cost = await Meter(bench.kafka, target, 1, {"client": child.pid, **bench.servers}).until(n, PATIENCE_S)
        finally:
            await asyncio.to_thread(end, child)
    await _check_peer(bench, hop, payments, target)
    return cost


_full: set[str] = set()


async def _filled(bench: Bench, topic: str, hop: str, payments: Payments) -> None:
    """Peers of one share read one topic."""
    if topic in _full:
        return
    stream = pipeline().streams[0]
    values = payments.encoded_rows() if hop == "score" else payments.values(dict(stream.schema), 1)
    await fill(bench.kafka, topic, payments.keys, values, int(payments.times[-1]))
    _full.add(topic)


async def _check_peer(bench: Bench, hop: str, payments: Payments, target: str) -> None:
    """Each answer once, and right. Their order is not asked for: some let payments of different cards change places."""
    records = (await read(bench.kafka, target, payments.n))[: payments.n]
    if hop == "echo":
        if sorted(record.key for record in records) != sorted(payments.keys):
            raise Differs("the echo is not what was said")
        return
    codec = Codec(ROW_SCHEMA if hop == "feature" else SCORE_SCHEMA)
    columns, bad = codec.decode(Varlen.of(record.value[5:] for record in records))
    if bad.any():
        raise Differs(f"{int(bad.sum())} outputs do not decode")
    names, wanted = ("count_24h", "sum_24h", "amount"), payments.rows
    if hop == "score":
        names, wanted = ("score",), expected_scores(bench)[: payments.n]
    found = np.stack([np.asarray(columns[name], np.float32) for name in names], axis=1)
    ids = _ids(columns["payment_id"])  # type: ignore[arg-type]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    _same(found[order], [ids[at] for at in order], wanted, payments.ids(), "rows" if hop == "feature" else "scores")


# ---- together -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def benched(n: int, peers_python: str) -> AsyncIterator[Bench]:
    """A stack of its own, and the model; all gone when it ends."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), environment={})
        await asyncio.to_thread(stack.start)
        try:
            graph = await asyncio.to_thread(model)
            (stack.folder / "model.onnx").write_bytes(graph)
            _full.clear()
            yield Bench(stack, payments_of(n), graph, peers_python)
        finally:
            await asyncio.to_thread(stack.stop)


async def driftline_round(n: int, peers_python: str = sys.executable) -> Mapping[str, Cost]:
    """Intake, feature and inference on a stack of their own, outputs compared before a time counts."""
    async with benched(n, peers_python) as bench:
        ours = Driftline(bench)
        await ours.prepare()
        costs = {service: await ours.measure(service) for service in SERVICES}
        await ours.check()
        return costs

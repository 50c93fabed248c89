"""
What every peer does with an event, whatever framework carries it, and the command line that all of them share.

A payment comes as Avro behind the Confluent framing. The feature hop answers how often and how much the card paid within a day before
it, by tiles of two hours, and writes the answer as a row; the score hop asks an ONNX model about a row. A peer gives a function of this
module to its framework and adds nothing: what differs between two peers is then what the frameworks cost.
"""

from __future__ import annotations

import argparse
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Payment = tuple[str, str, int, float]  # payment_id, card, at (milliseconds), amount
Row = tuple[str, str, int, float, float, float]  # payment_id, card, at, count_24h, sum_24h, amount
Tile = tuple[int, int, float]  # its number, how many payments, their sum; a list of the three once it was JSON
State = list[Tile]  # of one card, oldest first, at most thirteen
Message = tuple[bytes | None, bytes]  # key and value

HOPS = ("echo", "feature", "score")
TILE_MS = 7_200_000
DAY_MS = 86_400_000
YEAR_2100_MS = 4_102_444_800_000
FRAMING = struct.Struct(">BI")  # a zero, and the number of the schema
PACKED = struct.Struct("<IId")
ROW_ID, SCORE_ID = 1, 2
MODEL_INPUT = "rows"

# Plain longs: with the logical type that the payments' own schema gives to `at`, fastavro would make a datetime of each.
_NAMES = [{"name": "payment_id", "type": "string"}, {"name": "card", "type": "string"}, {"name": "at", "type": "long"}]
_NUMBERS = [{"name": "count_24h", "type": "double"}, {"name": "sum_24h", "type": "double"}]
_AMOUNT = {"name": "amount", "type": "double"}
PAYMENT = parse_schema({"type": "record", "name": "Payment", "fields": [*_NAMES, _AMOUNT]})
ROW = parse_schema({"type": "record", "name": "Row", "fields": [*_NAMES, *_NUMBERS, _AMOUNT]})
SCORE = parse_schema({"type": "record", "name": "Score", "fields": [*_NAMES, {"name": "score", "type": "float"}]})


@dataclass(frozen=True, slots=True)
class Task:
    """What a peer was asked to do, as its command line says it."""

    hop: str
    kafka: str
    source: str
    target: str
    redis: str
    model: str
    way: str
    folder: Path

    @property
    def group(self) -> str:
        """
        A consumer group, or whatever else names the state of this run: by the target, so that a run into a new topic begins at the
        beginning and a restart goes on.
        """
        return f"{self.hop}-{self.target}"


def read_task(description: str | None, hops: Sequence[str] = HOPS, ways: Sequence[str] = ("each",)) -> Task:
    """The command line that all peers share; the first of `ways` is the one taken when none is named."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hop", required=True, choices=hops)
    parser.add_argument("--kafka", required=True, metavar="HOST:PORT")
    parser.add_argument("--source", required=True, metavar="TOPIC", help="read from its beginning")
    parser.add_argument("--target", required=True, metavar="TOPIC", help="one message for each of the source's")
    parser.add_argument("--redis", default="", metavar="URL", help="for a peer that keeps its state there")
    parser.add_argument("--model", default="", metavar="FILE", help="ONNX, for the score hop")
    parser.add_argument("--way", default=ways[0], choices=ways)
    parser.add_argument("--folder", default=Path("state"), type=Path, help="for a peer that keeps its state in files")
    given = parser.parse_args()
    if given.hop == "score" and not given.model:
        parser.error("the score hop needs --model")
    return Task(**vars(given))


def decode_payment(value: bytes | None) -> Payment:
    """A payment from its message. Raises ValueError for what is not one."""
    if value is None:
        raise ValueError("no payment: the message has no value")
    fields = _decode(value, PAYMENT)
    payment_id, card, at_ms, amount = fields["payment_id"], fields["card"], fields["at"], fields["amount"]
    if not payment_id or not card:
        raise ValueError("a payment without a name or without a card")
    if not math.isfinite(amount):
        raise ValueError(f"{payment_id}: the amount is {amount}")
    if not 0 <= at_ms < YEAR_2100_MS:
        raise ValueError(f"{payment_id}: the time {at_ms} is not between 1970 and 2100")
    return payment_id, card, at_ms, amount


def decode_row(value: bytes | None) -> Row:
    """A row from its message. Raises ValueError for what is not one."""
    if value is None:
        raise ValueError("no row: the message has no value")
    fields = _decode(value, ROW)
    return fields["payment_id"], fields["card"], fields["at"], fields["count_24h"], fields["sum_24h"], fields["amount"]


def fold(state: State | None, at_ms: int, amount: float) -> tuple[State, int, float]:
    """
    What the card's tiles of the day before `at_ms` count and add up to without this payment, and the tiles with it. A card's payments
    come in the order of their times. What was given is not changed.
    """
    first, now = (at_ms - DAY_MS) // TILE_MS, at_ms // TILE_MS
    tiles = [tile for tile in state or () if tile[0] >= first]
    count, total = 0, 0.0
    for _, tile_count, tile_sum in tiles:
        count += tile_count
        total += tile_sum
    if tiles and tiles[-1][0] == now:
        _, tile_count, tile_sum = tiles[-1]
        tiles[-1] = (now, tile_count + 1, tile_sum + amount)
    else:
        tiles.append((now, 1, amount))
    return tiles, count, total


def pack(state: State) -> bytes:
    """The state of a card for a store of bytes, sixteen of them a tile."""
    return b"".join([PACKED.pack(*tile) for tile in state])


def unpack(packed: bytes | None) -> State | None:
    """What `pack` packed; None for what was never stored."""
    return None if packed is None else list(PACKED.iter_unpack(packed))


def answer(payment: Payment, count: int, total: float) -> Message:
    """The message that says what `fold` found of a payment."""
    payment_id, card, at_ms, amount = payment
    return card.encode(), encode_row(payment_id, card, at_ms, count, total, amount)


def encode_row(payment_id: str, card: str, at_ms: int, count: float, total: float, amount: float) -> bytes:
    """The value of a row's message."""
    fields = {"payment_id": payment_id, "card": card, "at": at_ms, "count_24h": count, "sum_24h": total, "amount": amount}
    return _encode(ROW_ID, ROW, fields)


def encode_score(payment_id: str, card: str, at_ms: int, score: float) -> bytes:
    """The value of a score's message."""
    return _encode(SCORE_ID, SCORE, {"payment_id": payment_id, "card": card, "at": at_ms, "score": score})


class Scorer:
    """A model of one input (n, 3) and one probability a row, on one thread: the peers are compared by what one core does."""

    def __init__(self, model: str) -> None:
        import numpy  # late, as ONNX: the other hops should not pay for them
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._output = [self._session.get_outputs()[0].name]
        self._matrix, self._float = numpy.array, numpy.float32

    def one(self, row: Row) -> float:
        """The probability of one row."""
        return float(self._run([row[3:]])[0])

    def many(self, rows: Sequence[Row]) -> list[float]:
        """The probabilities of rows, asked at once."""
        probabilities: list[float] = self._run([row[3:] for row in rows]).tolist()
        return probabilities

    def answer(self, value: bytes | None) -> Message:
        """The message that says what the model thinks of a row, from the row's message."""
        row = decode_row(value)
        return row[1].encode(), encode_score(*row[:3], self.one(row))

    def answers(self, values: Sequence[bytes | None]) -> list[Message]:
        """As `answer`, of many."""
        rows = [decode_row(value) for value in values]
        scores = self.many(rows)
        return [(row[1].encode(), encode_score(*row[:3], score)) for row, score in zip(rows, scores, strict=True)]

    def _run(self, numbers: Sequence[tuple[float, ...]]) -> npt.NDArray[np.float32]:
        rows = self._matrix(numbers, self._float)
        probabilities: npt.NDArray[np.float32] = self._session.run(self._output, {MODEL_INPUT: rows})[0]
        return probabilities.reshape(-1)


def _decode(value: bytes, schema: Any) -> Any:
    if len(value) <= FRAMING.size or value[0] != 0:
        raise ValueError("the message does not begin with a zero and the number of a schema")
    content = BytesIO(value)
    content.seek(FRAMING.size)
    try:
        return schemaless_reader(content, schema, None)
    except (EOFError, IndexError, OverflowError, struct.error) as error:
        raise ValueError(f"the message is not of its schema: {error!r}") from error


def _encode(number: int, schema: Any, fields: dict[str, Any]) -> bytes:
    content = BytesIO()
    content.write(FRAMING.pack(0, number))
    schemaless_writer(content, schema, fields)
    return content.getvalue()

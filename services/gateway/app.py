"""
The gateway process: HTTP in front of one pipeline. It owns nothing: what it tells is on the logs, what it is told goes there.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from driftline.clock import Clock
from driftline.contracts.messages import Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal
from driftline.metrics import metric
from driftline.models.bundle import BundleStore, load_public_key
from driftline.operate.addresses import Addresses, ops_of
from driftline.operate.board import Board, followers
from driftline.operate.desk import Desk
from driftline.operate.predictions import Prediction, Predictions
from driftline.operate.tokens import VARIABLE, Tokens, load_tokens
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.kafka import Publisher
from driftline.stream.online import OnlineReader
from driftline.stream.process import Ops, Part, Process
from driftline.stream.store import Store

from .access import Access, Rates
from .core import Book, Limits
from .http import Gateway, HttpServer, make_app
from .scoring import Scorer
from .served import Served
from .site import Bounds, Site
from .state import State

GIVEN_UP_S = 120.0
EXAMPLE = "{stem}.v1.json"


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    pipeline: str
    registry: str
    kafka: str = "127.0.0.1:9092"
    redis: str = "redis://127.0.0.1:6379/0"
    model_public_key: str = ""
    model_store: str = "/var/lib/driftline/models"
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    tokens_file: str = ""
    gateway_open: Literal["", "loopback"] = ""
    rate_per_s: float = 2_000.0  # of one token
    body_bytes_max: int = 1 << 20
    batch_max: int = 500
    wait_s: float = 2.0
    wait_max_s: float = 30.0
    command_wait_s: float = 10.0
    answers_max: int = 100_000
    waiting_max: int = 10_000
    connections_max: int = 1_000
    live_max: int = 100
    upstream_format: Literal["json", "avro"] = "json"
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    run_dir: str = ""
    ops: str = ""


def build(settings: Settings, clock: Clock) -> Process:
    """The process: the gateway, and the ops that every service has."""
    ops = Ops("gateway", settings.ops_port, Path(settings.run_dir) if settings.run_dir else None, settings.ops_host)
    return Process("gateway", [make(settings, clock, lambda url: ops.tell(http=url))], ops)


def make(settings: Settings, clock: Clock, tell: Callable[[str], None]) -> Gateway:
    """Everything that the gateway touches. Nothing connects before it runs; `tell` is told its address then."""
    pipeline = load_pipeline(settings.pipeline)
    tokens = admitted(settings)
    topics, registry = Topics.of(pipeline), Registry(settings.registry)
    addresses = Addresses(settings.kafka, settings.redis, settings.registry, Path(settings.run_dir or "."), ops_of(settings.ops.split(",")))
    trusts = load_public_key(Path(settings.model_public_key)) if settings.model_public_key else None
    board = Board()
    book: Book[Prediction] = Book(Limits(settings.answers_max, settings.waiting_max, GIVEN_UP_S))
    scorer = Scorer(settings.kafka, pipeline, registry, clock, book, settings.upstream_format)
    predictions = Predictions(settings.kafka, pipeline, registry, scorer.take, settings.answers_max)
    publisher = Publisher(settings.kafka, topics, registry, Writer.OPERATOR, clock, client=f"{pipeline.name}-gateway-commands")
    store = Store(settings.redis)
    online = OnlineReader(store, pipeline, f"{pipeline.name}-feature")
    desk = Desk(publisher, board, clock)
    behind: list[Part] = [scorer, predictions, desk, *followers(board, settings.kafka, topics, registry)]
    site = Site(
        pipeline=pipeline,
        state=State(pipeline, addresses, board, book, online, clock),
        scorer=scorer,
        desk=desk,
        served=Served(pipeline, board, BundleStore(Path(settings.model_store), trusts)),
        access=Access(pipeline.name, tokens, Rates(settings.rate_per_s, clock)),
        bounds=bounds(settings),
        clock=clock,
        version=metadata.version("driftline"),
        troubles=lambda: [] if all(part.ready for part in behind) else ["the topics are not read to their ends yet"],
        stopping=lambda: server.stopping,
        example=example_of(pipeline),
    )
    server = HttpServer(make_app(site), settings.http_host, settings.http_port, settings.connections_max, tell)
    metric("driftline_gateway_waiting_max").labels(pipeline=pipeline.name).set(settings.waiting_max)
    metric("driftline_gateway_predictions_kept_max").labels(pipeline=pipeline.name).set(settings.answers_max)
    return Gateway(server, behind, scorer.release, store.close)


def admitted(settings: Settings) -> Tokens | None:
    """The tokens; None where the gateway is to be open. Raises Fatal when it would be open to more than this machine."""
    if settings.tokens_file:
        return load_tokens(Path(settings.tokens_file))
    if settings.gateway_open != "loopback":
        raise Fatal(
            f"{VARIABLE} is not set, so nobody could be let in. Make a token (driftline tokens new NAME --role viewer) and put its line "
            "into a file; or, on a machine of your own, DRIFTLINE_GATEWAY_OPEN=loopback"
        )
    if not _is_loopback(settings.http_host):
        raise Fatal(
            f"DRIFTLINE_GATEWAY_OPEN=loopback, and DRIFTLINE_HTTP_HOST is {settings.http_host}: without tokens, only 127.0.0.1 or ::1"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bounds(settings: Settings) -> Bounds:
    """What requests may ask for."""
    names = ("body_bytes_max", "batch_max", "wait_s", "wait_max_s", "command_wait_s", "live_max")
    return Bounds(**{name: getattr(settings, name) for name in names})


def example_of(pipeline: Pipeline) -> dict[str, Any] | None:
    """The sample message beside the schema of the question's stream, where there is one."""
    name = str(pipeline.question.schema["name"]).lower()
    place = pipeline.folder / EXAMPLE.format(stem=name)
    if not place.exists():
        return None
    sample = json.loads(place.read_text())
    return sample.get("record", sample) if isinstance(sample, dict) else None

"""The client against a real registry and the one in memory: one suite for both. Then what the client does when none answers."""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count

import pytest

from driftline.contracts.registry import MemoryRegistry, Registry, canonical
from driftline.errors import Fatal, Invalid, Recoverable

NUMBERS = count()


def record(*fields, name="R"):
    return {"type": "record", "name": name, "namespace": "driftline", "fields": list(fields)}


A = {"name": "a", "type": "int"}
B = {"name": "b", "type": "string", "default": ""}
WRONG = {"name": "a", "type": "string"}


@pytest.fixture(params=["memory", "server"])
def registry(request):
    """The one in memory, and a real one by HTTP."""
    return MemoryRegistry() if request.param == "memory" else Registry(request.getfixturevalue("registry_url"))


@pytest.fixture
def subject():
    """A subject that no other test has."""
    return f"test.Registry{next(NUMBERS)}/{threading.get_native_id()}"


def test_a_schema_is_registered_once(registry, subject):
    """
    Its id finds it, and registering it again changes nothing.
    """
    schema_id = registry.register(subject, record(A))
    assert schema_id == registry.register(subject, record(A))
    assert record(A) == registry.schema(schema_id)
    assert (schema_id, 1, record(A)) == registry.latest(subject)


def test_one_schema_has_one_id_under_two_subjects(registry, subject):
    """
    As Confluent's registry has it, so that a frame means the same everywhere.
    """
    assert registry.register(subject, record(A)) == registry.register(subject + "-other", record(A))


def test_a_version_that_reads_the_last_one_is_the_next(registry, subject):
    """
    A field with a default makes version 2, and the first stays to be found.
    """
    first = registry.register(subject, record(A))
    second = registry.register(subject, record(A, B))
    assert (second, 2, record(A, B)) == registry.latest(subject)
    assert record(A) == registry.schema(first)


def test_a_version_that_cannot_read_the_last_one_is_refused(registry, subject):
    """
    Both when asked about and when registered, and nothing is registered by it.
    """
    registry.register(subject, record(A))
    for refuses in (registry.compatible, registry.register):
        with pytest.raises(Invalid, match="reader type: string not compatible with writer type: int"):
            refuses(subject, record(WRONG))
    assert record(A) == registry.latest(subject)[2]


def test_what_may_follow_is_allowed_before_it_is_registered(registry, subject):
    """
    The first schema of a subject may be any.
    """
    registry.compatible(subject, record(WRONG))
    registry.register(subject, record(A))
    registry.compatible(subject, record(A, B))


def test_what_is_no_schema_is_refused(registry, subject):
    """
    A record without fields is none.
    """
    with pytest.raises(Invalid):
        registry.register(subject, {"type": "record", "name": "R"})


def test_what_there_is_not_is_told(registry, subject):
    """
    No newest version of an unknown subject, and no schema of an unknown id.
    """
    assert registry.latest(subject) is None
    with pytest.raises(Invalid, match="not found"):
        registry.schema(2_000_000_000)


class Moody(BaseHTTPRequestHandler):
    """Answers with what its server has in `answers`, one after the other, the last one for ever."""

    def do_GET(self) -> None:
        status, body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        self.server.asked += 1
        self.server.told = dict(self.headers)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps the output of the tests clean."""


@pytest.fixture
def moody() -> Iterator[HTTPServer]:
    """A server with moods, on a port of its own."""
    server = HTTPServer(("127.0.0.1", 0), Moody)
    server.asked = 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client(server: HTTPServer, pauses: list[float]) -> Registry:
    return Registry(f"http://127.0.0.1:{server.server_port}/", pause=pauses.append)


def test_user_and_password_are_sent_and_a_refusal_names_them(moody, monkeypatch: pytest.MonkeyPatch):
    """
    As Confluent's registry takes them; who is not let in is not let in by asking again.
    """
    monkeypatch.setenv("DRIFTLINE_REGISTRY_USER", "ann")
    monkeypatch.setenv("DRIFTLINE_REGISTRY_PASSWORD", "s3cret")
    moody.answers = [(401, b'{"message": "Unauthorized"}')]
    with pytest.raises(Fatal, match=r"Unauthorized\. Look at DRIFTLINE_REGISTRY_USER and DRIFTLINE_REGISTRY_PASSWORD") as refusal:
        client(moody, []).schema(1)
    assert moody.told["Authorization"] == f"Basic {b64encode(b'ann:s3cret').decode()}"
    assert (moody.asked, "s3cret" in str(refusal.value)) == (1, False)


def test_a_registry_that_is_starting_is_waited_for(moody):
    """
    Faults of the server are tried again, with longer pauses, and the answer is remembered.
    """
    moody.answers = [(503, b""), (500, b'{"message": "warming up"}'), (200, json.dumps({"schema": json.dumps(record(A))}).encode())]
    pauses: list[float] = []
    registry = client(moody, pauses)
    assert record(A) == registry.schema(1) == registry.schema(1)
    assert (moody.asked, pauses[0] < pauses[1]) == (3, True)


def test_a_registry_that_does_not_answer_is_a_fault_that_may_pass(moody):
    """
    After some tries it is left, naming the address, the reason and the variable.
    """
    moody.answers = [(500, b'{"message": "out of memory"}')]
    with pytest.raises(Recoverable, match=r"http://127\.0\.0\.1:\d+ does not answer: out of memory\. Is DRIFTLINE_REGISTRY right"):
        client(moody, []).schema(1)
    assert moody.asked == 5


def test_an_answer_that_is_no_json_is_not_believed(moody):
    """
    Something else lives at that address.
    """
    moody.answers = [(200, b"<html>")]
    with pytest.raises(Recoverable, match="does not answer"):
        client(moody, []).schema(1)


def test_an_address_where_nothing_listens_is_told():
    """
    A port that was free a moment ago.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Recoverable, match="DRIFTLINE_REGISTRY"):
            Registry(f"http://127.0.0.1:{free.getsockname()[1]}", pause=lambda _: None).latest("s")


def test_the_order_of_keys_makes_no_other_schema():
    """
    The order of fields does.
    """
    assert canonical({"a": 1, "b": [1, 2]}) == canonical({"b": [1, 2], "a": 1}) != canonical({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize("text", ['syntax = "proto3";', '"string"', "[" * 100_000], ids=["Protobuf", "no record", "nested"])
def test_a_schema_that_is_no_record_of_avro_is_invalid(moody, text):
    """
    A registry holds other people's schemas too; a record that names one of them is refused like any other.
    """
    moody.answers = [(200, json.dumps({"schema": text}).encode())]
    with pytest.raises(Invalid, match="schema id 1"):
        client(moody, []).schema(1)

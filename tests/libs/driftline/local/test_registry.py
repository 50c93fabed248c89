"""The embedded registry: its rules, and Confluent's interface as its clients use it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from driftline.local.registry import Level, Refusal, Subjects
from driftline.local.stack import RegistryServer


def record(*fields: tuple[str, Any], name: str = "Ride") -> str:
    """An Avro record of (name, type) fields, or (name, type, default)."""
    listed = [dict(zip(("name", "type", "default"), field, strict=False)) for field in fields]
    return json.dumps({"type": "record", "name": name, "namespace": "org.example", "fields": listed})


RIDE = record(("id", "string"))
RIDE_WITH_FARE = record(("id", "string"), ("fare", "double", 0.0))
RIDE_THAT_NEEDS_FARE = record(("id", "string"), ("fare", "double"))


def registered(subjects: Subjects, subject: str, schema: str) -> int:
    version, is_new = subjects.propose(subject, schema)
    if is_new:
        subjects.take(version)
    return version.id


def test_the_same_schema_has_one_id_under_all_subjects() -> None:
    """
    Blanks and the order of keys do not make another schema; registering again changes nothing.
    """
    subjects = Subjects()
    first = registered(subjects, "a", RIDE)
    assert registered(subjects, "b", json.dumps(json.loads(RIDE), indent=4, sort_keys=True)) == first
    assert registered(subjects, "a", RIDE) == first
    assert [version.version for version in subjects.versions("a")] == [1]
    assert [version.subject for version in subjects.uses(first)] == ["a", "b"]


def test_a_field_with_a_default_may_be_added() -> None:
    """
    By default a new version has to read what the latest one wrote.
    """
    subjects = Subjects()
    registered(subjects, "rides", RIDE)
    registered(subjects, "rides", RIDE_WITH_FARE)
    assert [version.version for version in subjects.versions("rides")] == [1, 2]


def test_a_field_without_a_default_is_refused_before_it_is_registered() -> None:
    """
    A version that could not read the old records gets 409 and no number.
    """
    subjects = Subjects()
    registered(subjects, "rides", RIDE)
    with pytest.raises(Refusal, match="fare") as refusal:
        subjects.propose("rides", RIDE_THAT_NEEDS_FARE)
    assert (refusal.value.code, refusal.value.status) == (409, 409)
    assert [version.version for version in subjects.versions("rides")] == [1]


@pytest.mark.parametrize(
    ("level", "is_granted"),
    [(Level.NONE, True), (Level.BACKWARD, False), (Level.FORWARD, True), (Level.FULL, False), (Level.FORWARD_TRANSITIVE, True)],
)
def test_a_subject_has_its_own_level(level: Level, is_granted: bool) -> None:
    """
    A field without a default may be added where only old readers have to read new records.
    """
    subjects = Subjects()
    registered(subjects, "rides", RIDE)
    subjects.set_level("rides", level)
    faults = subjects.faults("rides", RIDE_THAT_NEEDS_FARE, subjects.versions("rides"))
    assert (not faults) is is_granted


@pytest.mark.parametrize("wrong", ["{", '{"type": "record"}', '{"type": "recrod", "name": "x", "fields": []}', '"no.such.type"', "[1]"])
def test_what_is_no_avro_schema_is_refused(wrong: str) -> None:
    """
    Text that is not JSON, or JSON that is not Avro, gets 42201.
    """
    with pytest.raises(Refusal) as refusal:
        Subjects().propose("rides", wrong)
    assert (refusal.value.code, refusal.value.status) == (42201, 422)


def ask(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> tuple[int, Any]:
    """Status and JSON of a request, as Confluent's clients send it."""
    media = {"Content-Type": "application/vnd.schemaregistry.v1+json", "Accept": "application/vnd.schemaregistry.v1+json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), media, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def subject() -> str:
    return f"rides-{uuid4().hex[:8]}"


def test_clients_register_look_up_and_read_by_id(registry_url: str, subject: str) -> None:
    """
    The calls that serializers and deserializers make: register, look up, fetch by id, list, latest.
    """
    schema = record(("id", "string"), name=f"Ride{subject[-8:]}")
    status, made = ask(f"{registry_url}/subjects/{subject}/versions?normalize=false", {"schema": schema})
    assert status == 200
    assert ask(f"{registry_url}/subjects/{subject}/versions", {"schema": schema}) == (200, made)
    found = {"subject": subject, "version": 1, "id": made["id"], "schema": json.dumps(json.loads(schema), separators=(",", ":"))}
    assert ask(f"{registry_url}/subjects/{subject}?deleted=false", {"schema": schema}) == (200, found)
    assert ask(f"{registry_url}/subjects/{subject}/versions/latest") == (200, found)
    assert ask(f"{registry_url}/subjects/{subject}/versions") == (200, [1])
    assert ask(f"{registry_url}/schemas/ids/{made['id']}?subject={subject}") == (200, {"schema": found["schema"]})
    assert subject in ask(f"{registry_url}/subjects")[1]
    assert ask(f"{registry_url}/schemas/types") == (200, ["AVRO"])


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/subjects/nobody/versions", None, 404, 40401),
        ("/subjects/nobody/versions/latest", None, 404, 40401),
        ("/subjects/nobody", {"schema": RIDE}, 404, 40401),
        ("/schemas/ids/999999", None, 404, 40403),
        ("/subjects/new/versions", {"schema": "{"}, 422, 42201),
        ("/subjects/new/versions", {"schema": "{}", "schemaType": "PROTOBUF"}, 422, 42201),
        ("/subjects/new/versions", {}, 422, 42201),
    ],
)
def test_refusals_have_confluents_form(registry_url: str, path: str, body: dict[str, Any] | None, status: int, code: int) -> None:
    """
    Clients tell refusals apart by `error_code`, not by their words.
    """
    got, said = ask(registry_url + path, body)
    assert (got, said["error_code"]) == (status, code)
    assert said["message"]


def test_an_incompatible_version_is_refused_over_http(registry_url: str, subject: str) -> None:
    """
    409 when it is registered; `is_compatible: false`, with the reason, when it is only asked about.
    """
    ask(f"{registry_url}/subjects/{subject}/versions", {"schema": RIDE})
    status, said = ask(f"{registry_url}/subjects/{subject}/versions", {"schema": RIDE_THAT_NEEDS_FARE})
    assert (status, said["error_code"]) == (409, 409)
    status, said = ask(f"{registry_url}/compatibility/subjects/{subject}/versions/latest?verbose=true", {"schema": RIDE_THAT_NEEDS_FARE})
    assert (status, said["is_compatible"]) == (200, False)
    assert "fare" in " ".join(said["messages"])
    assert ask(f"{registry_url}/compatibility/subjects/{subject}/versions/latest", {"schema": RIDE_WITH_FARE})[1]["is_compatible"] is True


def test_everything_is_read_again_from_the_topic(kafka: str, registry_url: str, subject: str, tmp_path: Path) -> None:
    """
    A registry started on the same Kafka knows the schemas, the levels and what was deleted.
    """
    ask(f"{registry_url}/config/{subject}", {"compatibility": "NONE"}, "PUT")
    _, first = ask(f"{registry_url}/subjects/{subject}/versions", {"schema": RIDE})
    _, second = ask(f"{registry_url}/subjects/{subject}/versions", {"schema": RIDE_THAT_NEEDS_FARE})
    assert ask(f"{registry_url}/subjects/{subject}/versions/1", method="DELETE") == (200, 1)
    with RegistryServer(tmp_path / "registry", kafka) as again:
        assert ask(f"{again.url}/config/{subject}") == (200, {"compatibilityLevel": "NONE"})
        assert ask(f"{again.url}/subjects/{subject}/versions") == (200, [2])
        assert ask(f"{again.url}/subjects/{subject}/versions/2")[1]["id"] == second["id"]
        assert ask(f"{again.url}/schemas/ids/{first['id']}")[0] == 200


def test_an_unknown_level_is_refused(registry_url: str, subject: str) -> None:
    """
    42203, and the subject keeps the level it had.
    """
    assert ask(f"{registry_url}/config/{subject}", {"compatibility": "SIDEWAYS"}, "PUT")[1]["error_code"] == 42203
    assert ask(f"{registry_url}/config/{subject}") == (200, {"compatibilityLevel": "BACKWARD"})

"""A schema registry that speaks Confluent's REST interface and keeps what it knows on the compacted topic `_schemas`.

`Subjects` is the registry without I/O: what is registered under which id, what may come next. `SchemaTopic` keeps it,
`serve` puts it on HTTP. One process at a time serves a Kafka cluster, and a schema is on the topic before it has an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import avro.schema
import uvicorn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from driftline.access import kafka_client
from driftline.errors import DriftlineError, Fatal
from driftline.stream.connect import connect

TOPIC = "_schemas"
TOPIC_TIMEOUT_S = 30.0
REPLICAS = 3
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"


class Level(StrEnum):
    """What a new version of a subject must agree with. Transitive: with all versions, not only the latest."""

    NONE = "NONE"
    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"


class Refusal(DriftlineError):
    """A request that the registry does not grant: Confluent's error code, its words, and the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = code if code < 1000 else code // 100  # 409 is its own status, 40401 is a 404


@dataclass(frozen=True, slots=True)
class Version:
    """One schema under one subject."""

    subject: str
    version: int
    id: int
    schema: str
    deleted: bool = False


class Subjects:
    """
    Everything that is registered. Pure: `propose` says what would be registered, `take` makes it so.

    The same schema has one id under all subjects. Numbers of deleted versions are not given again.
    """

    def __init__(self) -> None:
        self._versions: dict[str, list[Version]] = {}
        self._schemas: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        self._levels: dict[str, Level] = {}

    def take(self, version: Version) -> None:
        """Register `version`, or replace it (deleted, brought back)."""
        known = self._versions.setdefault(version.subject, [])
        known[:] = sorted([other for other in known if other.version != version.version] + [version], key=lambda each: each.version)
        self._schemas[version.id] = version.schema
        self._ids.setdefault(canonical(version.schema), version.id)

    def subjects(self) -> list[str]:
        return sorted(subject for subject in self._versions if self._alive(subject))

    def versions(self, subject: str) -> list[Version]:
        """Those that are not deleted, oldest first. Raises Refusal 40401 when there is none."""
        found = self._alive(subject)
        if not found:
            raise Refusal(40401, f"Subject '{subject}' not found.")
        return found

    def version(self, subject: str, number: str) -> Version:
        """A version by number or `latest`. Raises Refusal 40401, 40402 or 42202."""
        found = self.versions(subject)
        if number in ("latest", "-1"):
            return found[-1]
        if not number.isdecimal() or int(number) < 1:
            raise Refusal(42202, f"The specified version '{number}' is not a valid version id.")
        for version in found:
            if version.version == int(number):
                return version
        raise Refusal(40402, f"Version {number} not found.")

    def schema(self, schema_id: int) -> str:
        """Raises Refusal 40403 when there is none of that id."""
        if schema_id not in self._schemas:
            raise Refusal(40403, f"Schema {schema_id} not found")
        return self._schemas[schema_id]

    def uses(self, schema_id: int) -> list[Version]:
        """The versions that have this schema, in order of subject."""
        self.schema(schema_id)
        return [version for subject in self.subjects() for version in self._alive(subject) if version.id == schema_id]

    def lookup(self, subject: str, schema: str) -> Version:
        """The version of `subject` with this schema. Raises Refusal 40401, 40403 or 42201."""
        wanted = canonical(schema)
        for version in self.versions(subject):
            if canonical(version.schema) == wanted:
                return version
        raise Refusal(40403, "Schema not found")

    def propose(self, subject: str, schema: str) -> tuple[Version, bool]:
        """
        The version that `schema` has under `subject`, or would get, and whether it is new.

        Raises Refusal 42201 when it is no Avro schema, 409 when it does not agree with what is registered.
        """
        wanted = canonical(schema)
        everything = self._versions.get(subject, [])
        for version in everything:
            if canonical(version.schema) == wanted and not version.deleted:
                return version, False
        if faults := self.faults(subject, schema, self._alive(subject)):
            words = "; ".join(faults)
            raise Refusal(409, f'Schema being registered is incompatible with an earlier schema for subject "{subject}": {words}')
        number = max((version.version for version in everything), default=0) + 1
        schema_id = self._ids.get(wanted) or max(self._schemas, default=0) + 1
        return Version(subject, number, schema_id, self._schemas.get(schema_id, compact(schema))), True

    def faults(self, subject: str, schema: str, against: list[Version]) -> list[str]:
        """Why `schema` may not follow these versions at the subject's level, in words; empty when it may."""
        level = self.level(subject)
        if level is Level.NONE or not against:
            return []
        compared = against if level.endswith("_TRANSITIVE") else against[-1:]
        new = _parse(schema)
        faults: list[str] = []
        for version in compared:
            old = _parse(version.schema)
            if not level.startswith("FORWARD"):
                faults += [f"reading version {version.version}: {fault}" for fault in _faults(reader=new, writer=old)]
            if not level.startswith("BACKWARD"):
                faults += [f"read by version {version.version}: {fault}" for fault in _faults(reader=old, writer=new)]
        return faults

    def level(self, subject: str = "") -> Level:
        """Of a subject, or (empty) of those that have none of their own."""
        return self._levels.get(subject) or self._levels.get("") or Level.BACKWARD

    def set_level(self, subject: str, level: Level) -> None:
        self._levels[subject] = level

    def _alive(self, subject: str) -> list[Version]:
        return [version for version in self._versions.get(subject, []) if not version.deleted]


def _tree(schema: str) -> Any:
    try:
        tree = json.loads(schema)
        avro.schema.make_avsc_object(tree, avro.name.Names())
    except (json.JSONDecodeError, avro.errors.AvroException, TypeError, ValueError, AttributeError, KeyError) as error:
        raise Refusal(42201, f"Input schema is an invalid Avro schema: {error}") from error
    return tree


def _parse(schema: str) -> avro.schema.Schema:
    return avro.schema.make_avsc_object(_tree(schema), avro.name.Names())


def canonical(schema: str) -> str:
    """The same text for schemas that differ in order of keys and blanks alone. Raises Refusal 42201."""
    return json.dumps(_tree(schema), sort_keys=True, separators=(",", ":"))


def compact(schema: str) -> str:
    """`schema` without blanks, as it is kept and given out."""
    return json.dumps(json.loads(schema), separators=(",", ":"))


def _faults(reader: avro.schema.Schema, writer: avro.schema.Schema) -> list[str]:
    checker: Any = ReaderWriterCompatibilityChecker  # has no types
    answer = checker().get_compatibility(reader, writer)
    if answer.compatibility is SchemaCompatibilityType.compatible:
        return []
    return sorted(answer.messages)


class SchemaTopic:
    """The topic that holds a registry's state, one record a version or level, keyed as Confluent's are."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._producer: AIOKafkaProducer | None = None

    async def load(self, subjects: Subjects) -> None:
        """Make the topic if there is none, read all of it into `subjects`, and be ready to write."""
        await self._create()
        consumer = AIOKafkaConsumer(**kafka_client(self._kafka), auto_offset_reset="earliest", enable_auto_commit=False)
        await connect(consumer, self._kafka)
        try:
            partition = TopicPartition(TOPIC, 0)
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            await consumer.seek_to_beginning(partition)
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(partition, timeout_ms=200)).get(partition, []):
                    _apply(subjects, json.loads(record.key), json.loads(record.value) if record.value else None)
        finally:
            await consumer.stop()
        self._producer = AIOKafkaProducer(**kafka_client(self._kafka), acks="all", enable_idempotence=True)
        await connect(self._producer, self._kafka)

    async def keep(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Return when the broker has it. Raises Refusal 50001 when it could not be written."""
        if self._producer is None:
            raise Refusal(50001, "the registry has not read its topic yet")
        try:
            await self._producer.send_and_wait(TOPIC, json.dumps(value).encode(), json.dumps(key).encode(), partition=0)
        except KafkaError as error:
            raise Refusal(50001, f"{TOPIC} could not be written: {error}") from error

    async def close(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def _create(self) -> None:
        admin = AIOKafkaAdminClient(**kafka_client(self._kafka))
        await connect(admin, self._kafka)
        try:
            copies = min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
            answer = await admin.create_topics([NewTopic(TOPIC, 1, copies, topic_configs={"cleanup.policy": "compact"})])
            for _, code, *message in answer.topic_errors:
                if code not in (0, TopicAlreadyExistsError.errno):
                    raise Fatal(f"{TOPIC} could not be created: {for_code(code).__name__} {message}")
            await self._await_leader(admin)
        finally:
            await admin.close()

    async def _await_leader(self, admin: AIOKafkaAdminClient) -> None:
        async with asyncio.timeout(TOPIC_TIMEOUT_S):
            while True:
                (description,) = await admin.describe_topics([TOPIC])
                if not description["error_code"] and all(each["leader"] >= 0 for each in description["partitions"]):
                    return
                await asyncio.sleep(0.05)


def _apply(subjects: Subjects, key: Mapping[str, Any], value: Mapping[str, Any] | None) -> None:
    if value is None:
        return
    if key.get("keytype") == "SCHEMA":
        subjects.take(Version(value["subject"], value["version"], value["id"], value["schema"], value.get("deleted", False)))
    elif key.get("keytype") == "CONFIG":
        subjects.set_level(key.get("subject") or "", Level(value["compatibilityLevel"]))


class Registry:
    """What the HTTP interface calls: `Subjects`, changed one request at a time, each change on the topic first."""

    def __init__(self, subjects: Subjects, topic: SchemaTopic) -> None:
        self.subjects = subjects
        self._topic = topic
        self._changing = asyncio.Lock()

    async def register(self, subject: str, schema: str) -> Version:
        async with self._changing:
            version, is_new = self.subjects.propose(subject, schema)
            if is_new:
                await self._keep(version)
            return version

    async def delete(self, subject: str, number: str | None) -> list[int]:
        """Mark a version, or all of them (None), as deleted; their ids stay readable. The numbers that were."""
        async with self._changing:
            found = self.subjects.versions(subject) if number is None else [self.subjects.version(subject, number)]
            for version in found:
                await self._keep(replace(version, deleted=True))
            return [version.version for version in found]

    async def set_level(self, subject: str, word: str) -> Level:
        if word not in Level.__members__:
            raise Refusal(42203, f"Invalid compatibility level. Valid values are {', '.join(Level)}")
        async with self._changing:
            key = {"keytype": "CONFIG", "subject": subject or None, "magic": 0}
            await self._topic.keep(key, {"subject": subject or None, "compatibilityLevel": word})
            self.subjects.set_level(subject, Level(word))
            return Level(word)

    async def _keep(self, version: Version) -> None:
        key = {"keytype": "SCHEMA", "subject": version.subject, "version": version.version, "magic": 1}
        value = {
            "subject": version.subject,
            "version": version.version,
            "id": version.id,
            "schema": version.schema,
            "deleted": version.deleted,
        }
        await self._topic.keep(key, value)
        self.subjects.take(version)


class _Answer(JSONResponse):
    media_type = MEDIA_TYPE


async def _body(request: Request) -> dict[str, Any]:
    """Clients send their own media type, or none; it is JSON all the same."""
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise Refusal(42201, f"The request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refusal(42201, "The request is not a JSON object")
    return body


async def _schema_of(request: Request) -> str:
    body = await _body(request)
    if body.get("schemaType", "AVRO") != "AVRO" or body.get("references"):
        raise Refusal(42201, "Only Avro schemas without references are kept here")
    schema = body.get("schema")
    if not isinstance(schema, str):
        raise Refusal(42201, "Empty schema")
    return schema


def _said(version: Version) -> dict[str, Any]:
    return {"subject": version.subject, "version": version.version, "id": version.id, "schema": version.schema}


def interface(registry: Registry, topic: SchemaTopic, identity: str) -> FastAPI:
    """The HTTP interface. `identity` is given back at /v1/metadata/id, so that whoever started it knows it again."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await topic.load(registry.subjects)
        try:
            yield
        finally:
            await topic.close()

    api = FastAPI(title="driftline schema registry", lifespan=lifespan, default_response_class=_Answer)

    @api.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _Answer({"error_code": refusal.code, "message": str(refusal)}, refusal.status)

    @api.get("/v1/metadata/id")
    async def metadata() -> dict[str, Any]:
        return {"scope": {"path": [], "clusters": {}}, "id": identity}

    @api.get("/mode")
    @api.get("/mode/{subject}")
    async def mode() -> dict[str, str]:
        return {"mode": "READWRITE"}

    _read_routes(api, registry.subjects)
    _change_routes(api, registry)
    _level_routes(api, registry)
    return api


def _read_routes(api: FastAPI, subjects: Subjects) -> None:
    @api.get("/")
    async def root() -> dict[str, str]:
        return {}

    @api.get("/schemas/types")
    async def types() -> list[str]:
        return ["AVRO"]

    @api.get("/schemas/ids/{schema_id}")
    async def schema(schema_id: int) -> dict[str, str]:
        return {"schema": subjects.schema(schema_id)}

    @api.get("/schemas/ids/{schema_id}/schema")
    async def bare_schema(schema_id: int) -> Any:
        return json.loads(subjects.schema(schema_id))

    @api.get("/schemas/ids/{schema_id}/subjects")
    async def subjects_of(schema_id: int) -> list[str]:
        return sorted({version.subject for version in subjects.uses(schema_id)})

    @api.get("/schemas/ids/{schema_id}/versions")
    async def versions_of(schema_id: int) -> list[dict[str, Any]]:
        return [{"subject": version.subject, "version": version.version} for version in subjects.uses(schema_id)]

    @api.get("/subjects")
    async def all_subjects() -> list[str]:
        return subjects.subjects()

    @api.get("/subjects/{subject:path}/versions")
    async def versions(subject: str) -> list[int]:
        return [version.version for version in subjects.versions(subject)]

    @api.get("/subjects/{subject:path}/versions/{number}")
    async def version(subject: str, number: str) -> dict[str, Any]:
        return _said(subjects.version(subject, number))

    @api.get("/subjects/{subject:path}/versions/{number}/schema")
    async def bare_version(subject: str, number: str) -> Any:
        return json.loads(subjects.version(subject, number).schema)


def _change_routes(api: FastAPI, registry: Registry) -> None:
    @api.post("/subjects/{subject:path}/versions")
    async def register(subject: str, request: Request) -> dict[str, Any]:
        return _said(await registry.register(subject, await _schema_of(request)))

    @api.post("/compatibility/subjects/{subject:path}/versions/{number}")
    async def compatibility(subject: str, number: str, request: Request) -> dict[str, Any]:
        against = registry.subjects.version(subject, number)
        faults = registry.subjects.faults(subject, await _schema_of(request), [against])
        return {"is_compatible": not faults, "messages": faults}

    @api.post("/compatibility/subjects/{subject:path}/versions")
    async def compatibility_with_all(subject: str, request: Request) -> dict[str, Any]:
        faults = registry.subjects.faults(subject, await _schema_of(request), registry.subjects.versions(subject))
        return {"is_compatible": not faults, "messages": faults}

    @api.post("/subjects/{subject:path}")
    async def lookup(subject: str, request: Request) -> dict[str, Any]:
        return _said(registry.subjects.lookup(subject, await _schema_of(request)))

    @api.delete("/subjects/{subject:path}/versions/{number}")
    async def delete_version(subject: str, number: str) -> int:
        return (await registry.delete(subject, number))[0]

    @api.delete("/subjects/{subject:path}")
    async def delete_subject(subject: str) -> list[int]:
        return await registry.delete(subject, None)


def _level_routes(api: FastAPI, registry: Registry) -> None:
    @api.get("/config")
    @api.get("/config/{subject:path}")
    async def level(subject: str = "") -> dict[str, str]:
        return {"compatibilityLevel": registry.subjects.level(subject)}

    @api.put("/config")
    @api.put("/config/{subject:path}")
    async def set_level(request: Request, subject: str = "") -> dict[str, str]:
        word = str((await _body(request)).get("compatibility", ""))
        return {"compatibility": await registry.set_level(subject, word)}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What a command line says. Ends the process with words when it is wrong."""
    words = argparse.ArgumentParser(prog="driftline.local.registry", description="Confluent-compatible schema registry on a Kafka topic.")
    words.add_argument("--kafka", required=True, help="host:port of the Kafka that keeps the schemas")
    words.add_argument("--port", type=int, default=8081)
    words.add_argument("--host", default="127.0.0.1")
    words.add_argument("--identity", default="", help="given back at /v1/metadata/id")
    return words.parse_args(arguments)


def main() -> None:
    """`python -m driftline.local.registry --kafka host:port --port N`"""
    given = parse_arguments(sys.argv[1:])
    topic = SchemaTopic(given.kafka)
    api = interface(Registry(Subjects(), topic), topic, given.identity)
    uvicorn.run(api, host=given.host, port=given.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()

"""
Schema ids: a client of any registry with Confluent's interface, and the same in memory for tests.

Compatibility is BACKWARD: whoever has the new schema can read what was written with the one before.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from driftline import access
from driftline.errors import Fatal, Invalid, Recoverable

Schema = Mapping[str, Any]
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
TRIES_MAX = 5
PAUSE_S = 0.2
TIMEOUT_S = 5.0
NOT_FOUND = 404
NOT_LET_IN = (401, 403)


def canonical(schema: Schema) -> str:
    """One text for schemas that differ in the order of keys alone."""
    return json.dumps(schema, sort_keys=True, separators=(",", ":"))


def incompatibilities(new: Schema, old: Schema) -> list[str]:
    """
    Why a reader with `new` could not read everything written with `old`, in words; empty when it can.

    Raises Invalid when one of them is no Avro schema.
    """
    from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType  # only checks need it

    checker: Any = ReaderWriterCompatibilityChecker
    answer = checker().get_compatibility(_avro(new), _avro(old))
    if answer.compatibility is SchemaCompatibilityType.compatible:
        return []
    return sorted(answer.messages) or ["the checker gives no reason"]


def _avro(schema: Schema) -> Any:
    import avro.errors
    import avro.schema

    try:
        return avro.schema.parse(json.dumps(schema))
    except (avro.errors.AvroException, TypeError, ValueError, AttributeError, KeyError) as error:
        raise Invalid(f"no Avro schema: {error}") from error


class Registry:
    """
    The registry at `url`. Each call may block for up to half a minute while the registry does not answer, and raises Recoverable
    after that; what was answered once is remembered, so on the data plane only a schema never seen before costs a call.
    """

    def __init__(self, url: str, pause: Callable[[float], object] | None = None) -> None:
        """`pause` waits for so many seconds between two tries; a test gives its own."""
        self._url = url.rstrip("/")
        self._opener, self._authorization = _opener(self._url)
        self._pause = pause or threading.Event().wait
        self._ids: dict[tuple[str, str], int] = {}
        self._schemas: dict[int, dict[str, Any]] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """The id of `schema`, registered under `subject` if it was not yet. Raises Invalid when it may not follow the one before."""
        text = canonical(schema)
        if (subject, text) not in self._ids:
            answer = self._call("POST", f"/subjects/{_quoted(subject)}/versions", {"schema": json.dumps(schema)})
            self._ids[subject, text] = int(answer["id"])
        return self._ids[subject, text]

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema with this id. Raises Invalid when there is none."""
        if schema_id not in self._schemas:
            answer = self._call("GET", f"/schemas/ids/{schema_id}")
            self._schemas[schema_id] = _record(schema_id, answer)
        return self._schemas[schema_id]

    def latest(self, subject: str) -> tuple[int, int, dict[str, Any]] | None:
        """Id, version and schema of the newest under `subject`; None when there is none."""
        try:
            answer = self._call("GET", f"/subjects/{_quoted(subject)}/versions/latest")
        except _Missing:
            return None
        return int(answer["id"]), int(answer["version"]), json.loads(answer["schema"])

    def compatible(self, subject: str, schema: Schema) -> None:
        """Raises Invalid, saying why, when `schema` may not follow the newest under `subject`."""
        path = f"/compatibility/subjects/{_quoted(subject)}/versions/latest?verbose=true"
        try:
            answer = self._call("POST", path, {"schema": json.dumps(schema)})
        except _Missing:
            return
        if not answer["is_compatible"]:
            raise Invalid(_refusal(subject, answer.get("messages", [])))

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data, {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}, method=method)
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)  # for this server alone, wherever it sends us
        reason = ""
        for attempt in range(TRIES_MAX):
            if attempt:
                self._pause(PAUSE_S * 2**attempt)
            try:
                with self._opener.open(request, timeout=TIMEOUT_S) as response:
                    return json.loads(response.read())
            except HTTPError as error:
                with error:
                    reason = _said(error)
                if error.code in NOT_LET_IN:
                    raise Fatal(f"{self._url}: {reason}. Look at DRIFTLINE_REGISTRY_USER and DRIFTLINE_REGISTRY_PASSWORD") from error
                if error.code < 500:
                    raise (_Missing if error.code == NOT_FOUND else Invalid)(f"{self._url}: {reason}") from error
            except URLError as error:
                if isinstance(error.reason, ssl.SSLCertVerificationError):
                    why = f"its certificate is not trusted: {error.reason.verify_message}"
                    raise Fatal(f"{self._url}: {why}. Look at DRIFTLINE_REGISTRY_CA_FILE") from error
                reason = str(error)
            except (HTTPException, OSError, ValueError) as error:
                reason = str(error)
        raise Recoverable(f"the schema registry at {self._url} does not answer: {reason}. Is DRIFTLINE_REGISTRY right, and is it up?")


def _record(schema_id: int, answer: Any) -> dict[str, Any]:
    """The schema in a registry's answer. Raises Invalid when it is no Avro record: a registry may hold Protobuf too."""
    try:
        schema = json.loads(answer["schema"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Invalid(f"schema id {schema_id} is no Avro schema") from error
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise Invalid(f"schema id {schema_id} is no record")
    return schema


class _Missing(Invalid):
    """There is no such subject, version or id."""


def _opener(url: str) -> tuple[OpenerDirector, str]:
    """And the Authorization header. A proxy that the environment names cannot reach this machine's own addresses."""
    context, authorization = access.registry(url)
    home = [ProxyHandler({})] if urlsplit(url).hostname in access.AT_HOME else []
    secure = [HTTPSHandler(context=context)] if context is not None else []
    return build_opener(*home, *secure), authorization


def _quoted(subject: str) -> str:
    return quote(subject, safe="")


def _said(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"HTTP {error.code}"


def _refusal(subject: str, reasons: list[str]) -> str:
    return f"{subject}: the schema may not follow the one before it: {'; '.join(reasons) or 'the registry gives no reason'}"


class MemoryRegistry:
    """The same in memory: for tests, and where nothing is shared."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[int]] = {}
        self._schemas: dict[int, dict[str, Any]] = {}
        self._ids: dict[str, int] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """As `Registry.register`. The same schema has one id under all subjects."""
        text = canonical(schema)
        known = self._subjects.get(subject, [])
        if self._ids.get(text) in known:
            return self._ids[text]
        self.compatible(subject, schema)
        schema_id = self._ids.setdefault(text, len(self._ids) + 1)
        self._schemas.setdefault(schema_id, dict(schema))
        self._subjects[subject] = [*known, schema_id]
        return schema_id

    def schema(self, schema_id: int) -> dict[str, Any]:
        """As `Registry.schema`."""
        if schema_id not in self._schemas:
            raise _Missing(f"Schema {schema_id} not found")
        return self._schemas[schema_id]

    def latest(self, subject: str) -> tuple[int, int, dict[str, Any]] | None:
        """As `Registry.latest`."""
        known = self._subjects.get(subject)
        return (known[-1], len(known), self._schemas[known[-1]]) if known else None

    def compatible(self, subject: str, schema: Schema) -> None:
        """As `Registry.compatible`."""
        newest = self.latest(subject)
        if newest is None:
            _avro(schema)
            return
        reasons = incompatibilities(schema, newest[2])
        if reasons:
            raise Invalid(_refusal(subject, reasons))

"""The OpenAPI document: that it reads well, and that the gateway does what it says, whatever is sent."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from driftline.operate.tokens import Role

EXAMPLES = 5  # of good and of bad data each, for every operation
CHECKED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
def document(running: Any) -> dict[str, Any]:
    told: dict[str, Any] = running.client().get("/openapi.json").json()
    return told


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]


def test_every_operation_says_what_it_does_who_may_and_what_can_go_wrong(document: dict[str, Any]) -> None:
    """
    A summary, a tag, the role, a stable name, and problems as problem details.
    """
    found = operations(document)
    assert len(found) == 29
    for operation in found:
        assert re.fullmatch(r"[a-z_]+", operation["operationId"])
        assert operation["summary"] and operation["description"] and len(operation["tags"]) == 1
        assert operation["x-role"] in [role.value for role in Role]
        problems = [told["content"] for status, told in operation["responses"].items() if int(status) >= 400]
        assert problems and all(list(content) == ["application/problem+json"] for content in problems)
    assert {tag["name"] for tag in document["tags"]} == {operation["tags"][0] for operation in found}


def test_a_question_is_described_by_its_own_schema(document: dict[str, Any]) -> None:
    """
    With its documentation and what has to be there.
    """
    asked = document["components"]["schemas"]["AskedEvent"]
    assert asked["required"] == ["id", "account", "at", "amount"]
    assert asked["properties"]["account"]["description"] == "Whose."
    assert {"type": "null"} in asked["properties"]["note"]["anyOf"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """
    Components are put there by hand, too.
    """
    referred = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert referred <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in referred


def known(running: Any, name: str) -> str:
    """A value that there is, for half of the requests: what nobody has is soon said."""
    return {
        "pipeline": running.pipeline.name,
        "model": "m-1",
        "name": "m-1",
        "id": "nobody",
        "version": "m-1",
        "view": "recent",
        "key": "a",
    }[name]


def test_whatever_is_sent_the_gateway_does_what_its_document_says(
    running: Any, disorder: Any, rollout: dict[str, str], kept_ms: int, document: dict[str, Any]
) -> None:
    """
    Schemathesis makes requests of every operation, of good and of bad data: no server error, and no answer beside the document.
    """
    schema = schemathesis.openapi.from_dict(document)
    sent: Counter[str] = Counter()
    session = requests.Session()
    session.trust_env = False
    for found in schema.get_all_operations():
        operation = found.ok()
        name, role, tags = (operation.definition.raw[field] for field in ("operationId", "x-role", "tags"))
        if name == "follow":  # a stream has no end to wait for
            continue
        asked = disorder if tags == ["Commands"] else running
        headers = {} if role == "anyone" else {"Authorization": f"Bearer {asked.tokens[role]}"}
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try_out(asked, operation.as_strategy(mode), sent, name, session, headers)
    assert set(sent) == {operation["operationId"] for operation in operations(document)} - {"follow"}
    assert sum(sent.values()) > 28 * EXAMPLES


def try_out(running: Any, strategy: Any, sent: Counter[str], name: str, session: requests.Session, headers: dict[str, str]) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(case: Any) -> None:
        sent[name] += 1
        if sent[name] % 2:
            case.path_parameters = {place: known(running, place) for place in case.path_parameters or {}}
        waits = [wait for wait in ("timeout_s", "wait_s") if f"'{wait}'" in str(case.operation.definition.raw)]
        case.query = {**(case.query or {}), **dict.fromkeys(waits, 0)}
        answer = case.call(base_url=running.url, session=session, headers=headers)
        case.validate_response(answer, checks=CHECKED)

    with contextlib.suppress(Unsatisfiable):  # an operation without parameters cannot be asked wrongly
        one()

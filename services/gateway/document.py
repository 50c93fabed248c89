"""The OpenAPI document: what FastAPI makes of the routes, with the event's own schema, the problems, and the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from driftline.operate.tokens import Role
from driftline.pipeline import Pipeline, Stream

from .access import Guarded
from .problems import Fault, ProblemDetails

REF = "#/components/schemas/{model}"
TAGS = (
    ("Scoring", "Publish an event and get its prediction: one path and one truth, the loop's own."),
    ("Reading", "What is known: models with their evidence, deployments, reports, refused records, one event through the loop."),
    ("Commands", "What an operator may do. Each demands a reason, and goes on the log with it and with the name of the token."),
    ("Open Inference Protocol", "The same models, asked with features in hand: for stock clients. Nothing of it goes on the log."),
)
ABOUT = """Scoring, reading and operating one pipeline of driftline over HTTP.

Bring a token: `Authorization: Bearer TOKEN`. Each operation names the role that it needs (`x-role`): viewer, scorer, operator or
approver; every token may view. Errors are problem details (RFC 9457). What is limited answers 429 with `Retry-After`."""
JSON_TYPES: Mapping[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "int": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "timestamp-millis": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}]},
}


def event_schema(stream: Stream) -> dict[str, Any]:
    """The schema of a stream's records, as JSON Schema. Fields that it does not name may be there, and are passed over."""
    types = stream.types
    properties = {}
    for field in stream.schema["fields"]:
        kind = types[field["name"]]
        wanted = dict(JSON_TYPES[kind.rstrip("?")])
        if kind.endswith("?"):
            wanted = {"anyOf": [wanted, {"type": "null"}]}
        properties[field["name"]] = wanted | ({"description": field["doc"]} if "doc" in field else {})
    for name in {stream.id, stream.key}:
        if properties[name].get("type") == "string":
            properties[name] |= {"minLength": 1, "maxLength": 1_024}
    required = [name for name, kind in types.items() if not kind.endswith("?")]
    return {"type": "object", "description": stream.schema.get("doc", ""), "properties": properties, "required": required}


def event_name(stream: Stream) -> str:
    """The component that is the schema of the stream's records; of another name than any of ours."""
    return f"{stream.schema['name']}Event"


def document(app: FastAPI, pipeline: Pipeline, version: str, example: Mapping[str, Any] | None) -> dict[str, Any]:
    """The whole document."""
    made = get_openapi(
        title=f"driftline: {pipeline.name}",
        version=version,
        description=ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": words} for name, words in TAGS],
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for model in (ProblemDetails, Fault):
        schemas[model.__name__] = model.model_json_schema(ref_template=REF)
        schemas[model.__name__].pop("$defs", None)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are never answered here
        schemas.pop(name, None)
    schemas[event_name(pipeline.question)] = event_schema(pipeline.question) | ({"examples": [dict(example)]} if example else {})
    made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for route in app.routes:
        if isinstance(route, Guarded) and route.include_in_schema:
            for method in route.methods or ():
                _complete(made["paths"][route.path_format][method.lower()], route.needed)
    return made


def _complete(operation: dict[str, Any], needed: Role) -> None:
    operation["x-role"] = needed.value
    operation["security"] = [] if needed is Role.ANYONE else [{"token": []}]
    responses = operation["responses"]
    refused = responses.get("422", {})
    if "HTTPValidationError" in str(refused):  # FastAPI's own words for what is a problem here
        del responses["422"]
    for status, told in responses.items():
        if status == "429":
            told["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}

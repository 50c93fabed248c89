"""
The Open Inference Protocol v2 over HTTP, so that stock clients work unchanged: the same models as in the loop, asked with features in
hand instead of an event. Nothing that is asked here goes on the log.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Path, Request
from starlette.responses import JSONResponse, Response

from driftline.models.bundle import Model

from .problems import Responses, documented, of_status
from .served import Named
from .site import site_of
from .tensors import HEADER, INPUT, Asked, parse_request, write_answer

TAG = "Open Inference Protocol"
ROWS_MAX = 4_096
IN_LINE_MAX = 64  # rows that are scored without a thread: less than a millisecond

Model_ = Annotated[str, Path(description="The pipeline's name for the champion, or the name of a released model.", examples=["flights"])]
Version = Annotated[str, Path(description="By the pipeline's name: a model's name; by a model's: its digest, or the beginning of it.")]

OBJECT = {"application/json": {"schema": {"type": "object"}}}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["name", "shape", "datatype", "data"],
                                "properties": {
                                    "name": {"const": INPUT},
                                    "datatype": {"const": "FP32"},
                                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
                                    "data": {"type": "array", "items": {"type": ["number", "null"]}},
                                },
                            },
                        },
                        "outputs": {
                            "type": "array",
                            "items": {"type": "object", "required": ["name"], "properties": {"name": {"enum": ["score", "alert"]}}},
                        },
                    },
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def add_routes(app: FastAPI) -> None:
    """All routes under /v2."""
    plain: Responses = {200: {"description": "It is so", "content": OBJECT}}
    about: Responses = {**plain, **documented(404, 503)}
    infer: Responses = {
        200: {
            "description": "The scores",
            "content": {**OBJECT, "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **documented(404, 413, 415, 422, 503),
    }
    app.get("/v2/health/live", operation_id="oip_server_live", tags=[TAG], summary="The server lives", responses={**plain, **documented()})(
        live
    )
    app.get(
        "/v2/health/ready",
        operation_id="oip_server_ready",
        tags=[TAG],
        summary="Models can be asked",
        responses={**plain, **documented(503)},
    )(ready)
    app.get("/v2", operation_id="oip_server", tags=[TAG], summary="About the server", responses={**plain, **documented()})(server)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    for path, suffix in ((model, ""), (version, "_version")):
        about_it, ask, is_ready = (metadata, infer_champion, model_ready) if not suffix else (metadata_of, infer_version, version_ready)
        app.get(path, operation_id=f"oip_model{suffix}", tags=[TAG], summary="Inputs and outputs of a model", responses=about)(about_it)
        app.get(f"{path}/ready", operation_id=f"oip_model{suffix}_ready", tags=[TAG], summary="A model can be asked", responses=about)(
            is_ready
        )
        app.post(
            f"{path}/infer",
            operation_id=f"oip_infer{suffix}",
            tags=[TAG],
            summary="Score rows of features",
            responses=infer,
            openapi_extra=INFER,
        )(ask)


async def live() -> Response:
    """Whether the process answers."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """Whether the process has heard of the deployments."""
    if troubles := site_of(request).troubles():
        raise of_status(503, "; ".join(troubles))
    return JSONResponse({"ready": True})


async def server(request: Request) -> Response:
    """Name, version and extensions."""
    return JSONResponse({"name": "driftline", "version": site_of(request).version, "extensions": ["binary_tensor_data"]})


async def metadata(request: Request, model: Model_) -> Response:
    """The features in their order are at `inputs[0].parameters.names`."""
    return await _about(request, site_of(request).served.find(model))


async def metadata_of(request: Request, model: Model_, version: Version) -> Response:
    """As for the model, of one version."""
    return await _about(request, site_of(request).served.find(model, version))


async def model_ready(request: Request, model: Model_) -> Response:
    """200 when it is loaded and warm; it is loaded by this."""
    return await _ready(request, site_of(request).served.find(model))


async def version_ready(request: Request, model: Model_, version: Version) -> Response:
    """As for the model, of one version."""
    return await _ready(request, site_of(request).served.find(model, version))


async def infer_champion(request: Request, model: Model_) -> Response:
    """
    Rows of features in the order of the metadata, null or NaN where one is missing; `score` and `alert` for each. JSON, or binary tensors
    as tritonclient sends them.
    """
    return await _infer(request, site_of(request).served.find(model))


async def infer_version(request: Request, model: Model_, version: Version) -> Response:
    """As for the model, of one version."""
    return await _infer(request, site_of(request).served.find(model, version))


async def _about(request: Request, named: Named) -> Response:
    names = (await site_of(request).served.load(named)).manifest.names
    inputs = [{"name": INPUT, "datatype": "FP32", "shape": [-1, len(names)], "parameters": {"names": list(names)}}]
    outputs = [{"name": "score", "datatype": "FP32", "shape": [-1]}, {"name": "alert", "datatype": "BOOL", "shape": [-1]}]
    return JSONResponse(
        {"name": named.name, "versions": [named.version], "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}
    )


async def _ready(request: Request, named: Named) -> Response:
    await site_of(request).served.load(named)
    return JSONResponse({"name": named.name, "ready": True})


async def _infer(request: Request, named: Named) -> Response:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise of_status(415, "compressed bodies are not read here")
    site = site_of(request)
    model = await site.served.load(named)
    told = request.headers.get(HEADER)
    if told is not None and not told.isascii():
        raise of_status(422, f"{HEADER} is no number")
    asked = parse_request(await request.body(), None if told is None else _whole(told), len(model.manifest.names))
    if len(asked.rows) > ROWS_MAX:
        raise of_status(422, f"at most {ROWS_MAX} rows are scored at once")
    site.access.charge(request.state.holder, len(asked.rows) - 1)
    results = _scored(model, asked) if len(asked.rows) <= IN_LINE_MAX else await asyncio.to_thread(_scored, model, asked)
    body, header_bytes = write_answer(asked, named.name, named.version, results)
    if header_bytes is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={HEADER: str(header_bytes)})


def _whole(told: str) -> int:
    if not told.isdigit() or len(told) > 9:
        raise of_status(422, f"{HEADER} is no number of bytes")
    return int(told)


def _scored(model: Model, asked: Asked) -> dict[str, Any]:
    scores = model.score(asked.rows)
    return {"score": scores, "alert": np.asarray(scores >= model.threshold, np.bool_)}

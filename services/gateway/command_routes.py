"""
Operators' commands over HTTP: each goes on the log with a reason and with the name of the token, and is answered with what the rollout
or the trainer says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.responses import JSONResponse, Response

from driftline.contracts.messages import Deployment, Operator
from driftline.contracts.topics import Topics
from driftline.operate.commands import operator_command, retrain_command

from . import answers
from .problems import Responses, documented
from .score_routes import PipelineName
from .site import Site, site_of

TAG = "Commands"
WAIT_MAX_S = 60.0
# operation, action on the log, last part of the path, summary, what it does
COMMANDS = (
    ("approve_model", "approve", "approve", "Approve the waiting candidate", "Let the candidate that waits into shadow."),
    ("promote_model", "promote", "promote", "Promote the candidate", "Take the candidate to its next share now."),
    ("pause_rollout", "pause", "pause", "Pause the rollout", "Stop all steps that time would take; guardrails and rollback stay at work."),
    ("resume_rollout", "resume", "resume", "Resume the rollout", "Go on after a pause."),
    (
        "roll_back_model",
        "rollback",
        "rollback",
        "Roll back",
        "Take the candidate out; without one, go back to the previous champion.",
    ),
)

Wait = Annotated[float | None, Query(ge=0, le=WAIT_MAX_S, description="How long to wait for the answer, in seconds.")]
Handler = Callable[..., Coroutine[Any, Any, Response]]


def add_routes(app: FastAPI) -> None:
    """All routes of this module."""
    later: Responses = {202: {"description": "On the log, and not answered yet", "model": answers.Published}}
    for operation, action, path, summary, words in COMMANDS:
        app.post(
            f"/v1/{{pipeline}}/models/{path}",
            operation_id=operation,
            tags=[TAG],
            summary=summary,
            description=f"{words} Published with who and why; answered by the rollout, which may say no.",
            responses={200: {"description": "The answer", "model": answers.Moved}, **later, **documented(400, 404, 413, 422, 503)},
        )(_command(action))
    app.post(
        "/v1/{pipeline}/retrain",
        operation_id="retrain",
        tags=[TAG],
        summary="Train a challenger",
        description="Published with who and why. Training takes a while: 202 is usual, and the outcome is among the retrains.",
        responses={200: {"description": "The outcome", "model": answers.Trained}, **later, **documented(400, 404, 413, 422, 503)},
    )(retrain)


def _command(action: str) -> Handler:
    async def command(request: Request, pipeline: PipelineName, body: answers.Command, wait_s: Wait = None) -> Response:
        site = site_of(request)
        told, answer = await give(site, action, body, request.state.holder.name, _wait_s(site, wait_s))
        if answer is None:
            return _later(told.id, Topics.of(site.pipeline).control.name)
        moved = answers.Moved(command=told.id, moved=answer.move != "nothing", deployment=answers.Deployment.of(answer))
        return JSONResponse(moved.model_dump())

    return command


async def give(site: Site, action: str, body: answers.Command, who: str, wait_s: float) -> tuple[Operator, Deployment | None]:
    """
    Publish an operator's command in the name of `who`, for JSON and forms alike: the command, and the rollout's answer if it comes in time.
    Raises Recoverable when it could not be published.
    """
    told = operator_command(site.clock, action, body.model, body.reason, who)
    return told, await site.desk.to_rollout(told, wait_s)


async def retrain(request: Request, pipeline: PipelineName, body: answers.RetrainCommand, wait_s: Wait = None) -> Response:
    """Put a retrain command on its topic."""
    site = site_of(request)
    trigger = "first" if body.first else "operator"
    told = retrain_command(site.pipeline, site.clock, trigger, body.reason, request.state.holder.name)
    outcome = await site.desk.to_trainer(told, _wait_s(site, wait_s))
    if outcome is None:
        return _later(told.id, Topics.of(site.pipeline).retrain.name)
    return JSONResponse(answers.Trained(command=told.id, outcome=answers.Outcome.of(outcome)).model_dump())


def _wait_s(site: Site, wait_s: float | None) -> float:
    return site.bounds.command_wait_s if wait_s is None else wait_s


def _later(command: str, topic: str) -> Response:
    return JSONResponse(answers.Published(command=command, topic=topic).model_dump(), 202)

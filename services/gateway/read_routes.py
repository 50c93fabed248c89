"""What is known of a pipeline, read over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request

from driftline.contracts.bounds import TIME_MS_MAX
from driftline.errors import Invalid, Rejected

from . import answers
from .problems import documented, of_status
from .score_routes import PipelineName
from .site import site_of

TAG = "Reading"
SHOWN = 100

Newest = Annotated[int, Query(ge=1, le=1_000, description="How many of the newest.")]


def add_routes(app: FastAPI) -> None:
    """All routes of this module."""

    def get(path: str, name: str, summary: str, answer: type, handler: Any, *problems: int) -> None:
        responses = documented(404, *problems)
        app.get(path, operation_id=name, tags=[TAG], summary=summary, response_model=answer, responses=responses)(handler)

    get("/v1/pipelines", "list_pipelines", "The pipelines of this gateway", list[answers.PipelineCard], list_pipelines)
    get("/v1/{pipeline}/status", "get_status", "Is it well?", answers.Status, get_status, 503)
    get("/v1/{pipeline}/models", "list_models", "Releases, refused ones too", answers.Releases, list_models, 422)
    get("/v1/{pipeline}/models/{name}", "get_model", "One release with its evidence", answers.Release, get_model)
    get(
        "/v1/{pipeline}/deployments",
        "list_deployments",
        "Which model serves, and why",
        answers.Deployments,
        list_deployments,
        422,
    )
    get("/v1/{pipeline}/reports", "list_reports", "Drift, quality and alarms by window", answers.Reports, list_reports, 422)
    get("/v1/{pipeline}/retrains", "list_retrains", "Retrain commands and their outcomes", answers.Retrains, list_retrains, 422)
    get("/v1/{pipeline}/dead-letters", "list_dead_letters", "Refused records by reason", answers.DeadLetters, list_dead_letters)
    get("/v1/{pipeline}/features/{view}/{key:path}", "get_features", "Features of an entity now", answers.Entity, get_features, 422, 503)
    get("/v1/{pipeline}/events/{id:path}", "get_event", "One event through the loop", answers.Event, get_event, 503)


async def list_pipelines(request: Request) -> list[answers.PipelineCard]:
    """A gateway has one pipeline; a proxy may put several side by side."""
    site = site_of(request)
    pipeline, now = site.pipeline, site.state.deployment()
    return [
        answers.PipelineCard(
            name=pipeline.name,
            owner=pipeline.owner,
            question=pipeline.question.topic,
            features=list(pipeline.layout.names),
            views=list(pipeline.layout.views),
            version=pipeline.layout.version,
            model=next((arm.model for arm in now.arms if arm.role == "champion"), ""),
            approvals=pipeline.rollout.approvals,
        )
    ]


async def get_status(request: Request, pipeline: PipelineName) -> answers.Status:
    """Processes, lags, the model that serves, open alarms: as they were two seconds ago at most."""
    return answers.Status.of(await site_of(request).state.status())


async def list_models(request: Request, pipeline: PipelineName, newest: Newest = SHOWN) -> answers.Releases:
    """What was trained, what the gate said, and what it does now. The evidence is at each release."""
    history = site_of(request).state.history()
    return answers.Releases(releases=[answers.Release.of(one, history, evidence=False) for one in reversed(history.releases[-newest:])])


async def get_model(
    request: Request,
    pipeline: PipelineName,
    name: Annotated[str, Path(description="Its name, or the beginning of its digest.", examples=["flights-4"])],
) -> answers.Release:
    """With everything that the gate looked at."""
    history = site_of(request).state.history()
    try:
        return answers.Release.of(history.release(name), history, evidence=True)
    except Invalid as error:
        raise of_status(404, "no release, or more than one, has this name or a digest that begins so") from error


async def list_deployments(request: Request, pipeline: PipelineName, newest: Newest = SHOWN) -> answers.Deployments:
    """Every move of the rollout with its reason."""
    history = site_of(request).state.history()
    moves = [answers.Deployment.of(one) for one in reversed(history.moves[-newest:])]
    return answers.Deployments(now=answers.Deployment.of(history.now), moves=moves)


async def list_reports(request: Request, pipeline: PipelineName, newest: Newest = 10) -> answers.Reports:
    """One a window of the pipeline's clock."""
    return answers.Reports(reports=[answers.Report.of(one) for one in reversed(site_of(request).state.reports()[-newest:])])


async def list_retrains(request: Request, pipeline: PipelineName, newest: Newest = SHOWN) -> answers.Retrains:
    """Automatic ones and those of operators."""
    return answers.Retrains(retrains=[answers.Retrain.of(one) for one in reversed(site_of(request).state.retrains()[-newest:])])


async def list_dead_letters(request: Request, pipeline: PipelineName) -> answers.DeadLetters:
    """How many, and the newest of each reason, without what they held: that is for the command line (driftline dead-letters show)."""
    return answers.DeadLetters.of(site_of(request).state.refusals())


async def get_features(
    request: Request,
    pipeline: PipelineName,
    view: Annotated[str, Path(description="A view of the pipeline.", examples=["aircraft"])],
    key: Annotated[str, Path(description="The entity; of several fields, in their order, with | between them.", max_length=1_024)],
    at: Annotated[int | None, Query(ge=0, lt=TIME_MS_MAX, description="As of when, in milliseconds; now when left out.")] = None,
) -> answers.Entity:
    """
    By the function that answers questions, from what the feature service keeps: what a question at this moment would find. In a replay,
    whose time is another, say `at`.
    """
    site = site_of(request)
    named = next((one for one in site.pipeline.views if one.name == view), None)
    if named is None:
        raise of_status(404, f"there are the views {', '.join(site.pipeline.layout.views)}")
    parts = key.split("|") if len(named.by) > 1 else [key]
    if len(parts) != len(named.by) or not all(parts):
        raise of_status(422, f"an entity of this view has {len(named.by)} parts: {' | '.join(named.by)}")
    try:
        found = await site.state.features(view, parts, at)
    except Rejected as error:
        raise of_status(503, str(error), {"Retry-After": "1"}) from error
    entity = dict(zip(named.by, parts, strict=True))
    return answers.Entity(view=view, entity=entity, at=found.at_ms, features=found.features, age_s=found.age_s)


async def get_event(
    request: Request, pipeline: PipelineName, id: Annotated[str, Path(description="The event's id.", max_length=1_024)]
) -> answers.Event:
    """
    Every message about it with its coordinate: where it came from, the row with the ages of its views, the prediction, the answer of each
    arm and shadow, the outcome, the label. It reads the log, so two are answered at once, and others are asked to come again.
    """
    site = site_of(request)
    try:
        return answers.Event.of(await site.state.trace(id), site.pipeline)
    except Invalid as error:
        raise of_status(404, "no event on the log has this id") from error

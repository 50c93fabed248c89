"""What the gateway answers, as types: the OpenAPI document is made from them, and what is answered from memory is built as them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from driftline.contracts import messages
from driftline.operate import board, trace
from driftline.operate.dead_letters import Letter
from driftline.operate.models import History
from driftline.operate.predictions import Prediction as Told
from driftline.operate.status import Status as Found
from driftline.pipeline import Pipeline
from driftline.stream.batch import Varlen

from .problems import ProblemDetails

Time = Annotated[int, Field(description="Milliseconds since 1970, UTC.", examples=[1_357_016_400_000])]


class Prediction(BaseModel):
    """The answer to one question, as it is on the topic of predictions."""

    id: Annotated[str, Field(description="Id of the question.", examples=["UA1545-EWR-2013-01-01"])]
    key: Annotated[str, Field(description="Key of the question.")]
    time: Time
    event_offset: Annotated[int, Field(description="With the partition, the name of the event throughout the loop.")]
    partition: int
    score: Annotated[float | None, Field(description="A probability.", examples=[0.137])]
    decision: Annotated[str, Field(description="alert or pass.", examples=["pass"])]
    reasons: Annotated[list[str], Field(description="Views that raised the score most, first the strongest; only on alerts.")]
    model: Annotated[str, Field(description="Name of the model; empty when none answered.", examples=["flights-4"])]
    arm: Annotated[str, Field(description="champion, canary or none.", examples=["champion"])]
    flags: Annotated[list[str], Field(description="degraded, no_score, stale_view: an answer with a flag is an answer.")]
    traceparent: Annotated[str | None, Field(description="Trace context of the question, by W3C; null where it had none.")]


class Awaited(BaseModel):
    """The question is published; its answer will be at the location."""

    id: str
    location: Annotated[str, Field(examples=["/v1/flights/predictions/UA1545-EWR-2013-01-01"])]


class Scored(BaseModel):
    """What became of one question of a batch: one of the three."""

    status: Annotated[int, Field(description="200 with the prediction, 202 with the location, or why it was refused.", examples=[200])]
    prediction: Prediction | None = None
    awaited: Awaited | None = None
    problem: ProblemDetails | None = None


class ScoredBatch(BaseModel):
    """One result for each question, in their order."""

    results: list[Scored]


class PipelineCard(BaseModel):
    """One use case."""

    name: str
    owner: str
    question: Annotated[str, Field(description="The topic of the questions.")]
    features: Annotated[list[str], Field(description="The inputs of a model, in the order of the row.")]
    views: list[str]
    version: Annotated[str, Field(description="Of the set of features.")]
    model: Annotated[str, Field(description="The champion; empty while there is none.")]
    approvals: Annotated[int, Field(description="How many people have to approve a candidate before it scores along.")]


class Arm(BaseModel):
    """A model with a part in a deployment."""

    role: Annotated[str, Field(description="champion, canary, candidate, frozen or previous.")]
    model: str
    digest: str
    share: Annotated[float, Field(description="Of the keys that it answers.")]

    @classmethod
    def of(cls, arm: messages.Arm) -> Arm:
        """As the log has it."""
        return cls(role=arm.role, model=arm.model, digest=arm.digest, share=arm.share)


class Deployment(BaseModel):
    """Which model answers which share of the keys, and what led there."""

    version: int
    move: Annotated[str, Field(description="What the rollout did, nothing included.", examples=["canary"])]
    state: Annotated[str, Field(examples=["canary"])]
    reason: str
    time: Time
    arms: list[Arm]
    shadows: list[Arm]

    @classmethod
    def of(cls, one: messages.Deployment) -> Deployment:
        """As the log has it."""
        return cls(
            version=one.version,
            move=one.move,
            state=one.state,
            reason=one.reason,
            time=one.time,
            arms=[Arm.of(arm) for arm in one.arms],
            shadows=[Arm.of(arm) for arm in one.shadows],
        )


class Deployments(BaseModel):
    """The deployment in force, and the moves that led to it, newest first."""

    now: Deployment
    moves: list[Deployment]


class Release(BaseModel):
    """A trained model and the gate's verdict, refused ones too."""

    model: str
    digest: str
    verdict: Annotated[str, Field(description="accepted or refused.")]
    reason: str
    role: Annotated[str, Field(description="What it does now, as canary 25%; empty when it does nothing.")]
    time: Time
    trigger: Annotated[str, Field(description="Why it was trained.")]
    command: Annotated[str, Field(description="The retrain command.")]
    who: str
    evidence: Annotated[dict[str, Any] | None, Field(description="Everything that the gate looked at.")] = None

    @classmethod
    def of(cls, one: messages.Release, history: History, *, evidence: bool) -> Release:
        """As the log has it, and what it does now."""
        told = {name: getattr(one, name) for name in ("model", "digest", "verdict", "reason", "time", "trigger", "command", "who")}
        return cls(**told, role=history.role_of(one.digest), evidence=one.evidence if evidence else None)


class Releases(BaseModel):
    """Newest first."""

    releases: list[Release]


class Report(BaseModel):
    """What one window of the pipeline's clock showed: drift, quality, alarms."""

    start: Time
    end: Time
    retrains: Annotated[list[str], Field(description="Ids of the retrain commands that it raised.")]
    body: dict[str, Any]

    @classmethod
    def of(cls, one: messages.Report) -> Report:
        """As the log has it."""
        return cls(start=one.start, end=one.end, retrains=list(one.retrains), body=one.body)


class Reports(BaseModel):
    """Newest first."""

    reports: list[Report]


class Outcome(BaseModel):
    """How a retrain command ended."""

    outcome: Annotated[str, Field(description="accepted, refused, duplicate, cooldown, budget or failed.")]
    reason: str
    time: Time
    rows: int
    model: str
    digest: str

    @classmethod
    def of(cls, one: messages.Trained) -> Outcome:
        """As the log has it."""
        return cls(**{name: getattr(one, name) for name in cls.model_fields})


class Retrain(BaseModel):
    """A command to train a challenger, and its outcome once there is one."""

    id: str
    trigger: Annotated[str, Field(description="first, quality, new_labels, schedule, definition or operator.")]
    time: Time
    who: str
    evidence: dict[str, Any]
    outcome: Outcome | None

    @classmethod
    def of(cls, one: board.Commanded) -> Retrain:
        """As the log has it."""
        command, outcome = one.command, None if one.outcome is None else Outcome.of(one.outcome)
        told = {name: getattr(command, name) for name in ("id", "trigger", "time", "who", "evidence")}
        return cls(**told, outcome=outcome)


class Retrains(BaseModel):
    """Newest first."""

    retrains: list[Retrain]


class Refused(BaseModel):
    """One refused record, without what it held."""

    place: Annotated[str, Field(description="topic[partition]@offset", examples=["payments[3]@88213"])]
    time: Time
    detail: str
    sealed: Annotated[bool, Field(description="Whether it is kept encrypted.")]

    @classmethod
    def of(cls, letter: Letter) -> Refused:
        """As the log has it."""
        return cls(place=letter.place, time=letter.timestamp, detail=letter.detail, sealed=letter.sealed)


class Refusals(BaseModel):
    """Refused records of one topic, service and reason."""

    topic: str
    service: str
    reason: str
    count: int
    newest: Annotated[list[Refused], Field(description="Newest first.")]


class DeadLetters(BaseModel):
    """All refused records, by topic, service and reason."""

    refusals: list[Refusals]

    @classmethod
    def of(cls, found: list[board.Refusals]) -> DeadLetters:
        """As they are on the board."""
        return cls(
            refusals=[
                Refusals(
                    topic=one.topic,
                    service=one.service,
                    reason=one.reason,
                    count=one.count,
                    newest=[Refused.of(letter) for letter in reversed(one.newest)],
                )
                for one in found
            ]
        )


class Lag(BaseModel):
    """How far a group is behind on one topic, over all partitions."""

    group: str
    topic: str
    position: int
    messages: int


class Status(BaseModel):
    """Is it well?"""

    well: Annotated[bool, Field(description="Whether nothing is in trouble.")]
    troubles: Annotated[list[str], Field(description="What keeps the pipeline from being well, in words.")]
    services: Annotated[dict[str, str], Field(description="By name: ready, or what is wrong.")]
    lags: list[Lag]
    deployment: Deployment
    reported: Annotated[int | None, Field(description="End of the last report's window; null before the first.")]
    alarms: Annotated[list[dict[str, Any]], Field(description="Open alarms, with their evidence.")]

    @classmethod
    def of(cls, found: Found) -> Status:
        """As it was found."""
        alarms = found.report.body.get("alarms", []) if found.report else []
        return cls(
            well=not found.troubles,
            troubles=found.troubles,
            services=found.services,
            lags=[Lag(group=one.group, topic=one.topic, position=one.position, messages=one.messages) for one in found.lags],
            deployment=Deployment.of(found.deployment),
            reported=found.report.end if found.report else None,
            alarms=[alarm for alarm in alarms if isinstance(alarm, dict)],
        )


class Message(BaseModel):
    """One message about an event: where it lies, and what it says."""

    topic: str
    partition: int
    offset: int
    message: Annotated[str, Field(examples=["row", "prediction", "answer", "outcome", "example"])]
    fields: dict[str, Any]


class Event(BaseModel):
    """One event through the loop, in the loop's order."""

    id: str
    trace_id: Annotated[str | None, Field(description="The trace that its sender counts it to; null where the record named none.")]
    messages: list[Message]
    features: Annotated[dict[str, float | None], Field(description="The row as it was served, by name; null is missing.")]
    ages_s: Annotated[dict[str, float | None], Field(description="How old each view was, in seconds; null where it knew nothing.")]

    @classmethod
    def of(cls, found: trace.Trace, pipeline: Pipeline) -> Event:
        """As it was found. The body of the event is left out: it is its sender's."""
        told = [
            Message(
                topic=one.topic,
                partition=one.partition,
                offset=one.offset,
                message=one.message,
                fields={name: value for name, value in one.fields.items() if name not in ("row", "body")},
            )
            for one in (*found.events, *found.after)
        ]
        rows = [one.fields["row"] for one in found.after if one.message == "row" and one.fields.get("layout") == pipeline.layout.version]
        features, ages = _row(pipeline, rows[0]) if rows else ({}, {})
        return cls(id=found.id, trace_id=found.trace_id, messages=told, features=features, ages_s=ages)


def _row(pipeline: Pipeline, row: bytes) -> tuple[dict[str, float | None], dict[str, float | None]]:
    layout, rows = pipeline.layout, Varlen.of([row])
    features, ages = layout.matrix(rows)[0].tolist(), layout.ages(rows)[0].tolist()
    return dict(zip(layout.names, features, strict=True)), dict(zip(layout.views, ages, strict=True))


class Entity(BaseModel):
    """What a view says of an entity."""

    view: str
    entity: Annotated[dict[str, str], Field(description="The fields that name it.", examples=[{"tail": "N14228"}])]
    at: Annotated[int, Field(description="As of when: milliseconds since 1970, UTC.")]
    features: Annotated[dict[str, float | None], Field(description="By name; null is missing.")]
    age_s: Annotated[float | None, Field(description="How long ago it was last heard of, in seconds; null where it is not known.")]


class Command(BaseModel, extra="forbid"):
    """Why; it is published with the command and with the name of the token."""

    reason: Annotated[str, Field(min_length=3, max_length=500, pattern=r"\S", examples=["the new model is right about snow"])]
    model: Annotated[
        str,
        Field(
            max_length=100,
            description="The model that is meant, by name or digest: refused when another is at hand.",
            examples=["flights-4"],
        ),
    ] = ""


class RetrainCommand(BaseModel, extra="forbid"):
    """Why; it is published with the command and with the name of the token."""

    reason: Annotated[str, Field(min_length=3, max_length=500, pattern=r"\S", examples=["the timetable changed"])]
    first: Annotated[bool, Field(description="Train a first model, when there is none.")] = False


class Moved(BaseModel):
    """The rollout's answer to a command."""

    command: Annotated[str, Field(description="Id of the command on the log.")]
    moved: Annotated[bool, Field(description="Whether anything changed; the deployment's reason says why not.")]
    deployment: Deployment


class Published(BaseModel):
    """The command is on the log, and is not answered yet; it will be."""

    command: Annotated[str, Field(description="Id of the command on the log.")]
    topic: str


class Trained(BaseModel):
    """The trainer's answer to a command."""

    command: Annotated[str, Field(description="Id of the command on the log.")]
    outcome: Outcome


def prediction(told: Told) -> Prediction:
    """As it is on its topic."""
    return Prediction(**{name: getattr(told, name) for name in Prediction.model_fields})

"""
The command line. Each command is a few lines that call something else, imported only when the command runs, so that
`driftline --help` is quick and a service loads what it needs alone.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from driftline.errors import DriftlineError, Invalid

if TYPE_CHECKING:
    from rich.console import Console

    from driftline.contracts.messages import Trained
    from driftline.operate.addresses import Addresses
    from driftline.pipeline import Pipeline

SERVICES = ("intake", "feature", "inference", "labeler", "drift", "trainer", "rollout", "gateway")
Result = TypeVar("Result")

LINE_MAX = 240

app = typer.Typer(
    name="driftline",
    help="Real-time machine learning on Kafka that closes its own loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(
    help="Releases and rollouts: look, approve, promote, roll back, pause.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")
tokens_app = typer.Typer(help="Tokens for the gateway.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tokens_app, name="tokens")

Name = Annotated[
    str | None, typer.Argument(metavar="[PIPELINE]", help="Folder in pipelines/; may be left out when there is one.", show_default=False)
]
Chosen = Annotated[
    str | None, typer.Option("--pipeline", "-p", metavar="NAME", help="Folder in pipelines/; may be left out when there is one.")
]
Because = Annotated[str, typer.Option("--because", help="Why; published with the command.")]
Wait = Annotated[float, typer.Option("--wait-s", help="How long to wait for the answer.")]


@app.command()
def demo(
    *,
    fast: Annotated[bool, typer.Option("--fast", help="Ten weeks, in a minute.")] = False,
    year: Annotated[bool, typer.Option("--year", help="All of 2013.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up after the report.")] = False,
    days: Annotated[int | None, typer.Option(help="How many days of 2013 to play.", show_default="212")] = None,
    partitions: Annotated[int, typer.Option(help="Partitions of each data topic.")] = 2,
    kills: Annotated[bool, typer.Option(help="Kill processes in the middle of the load.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the play: the same seed gives the same report.")] = 7,
    folder: Annotated[Path, typer.Option(help="Where the run keeps its files.")] = Path(".driftline"),
) -> None:
    """Play real flights through the whole loop, with a kill -9 in the middle. Exit 0 only if every promise held."""
    from driftline.local.demo import run_demo

    raise typer.Exit(run_demo(fast=fast, year=year, keep=keep, days=days, partitions=partitions, kills=kills, seed=seed, folder=folder))


@app.command()
def check(name: Name = None) -> None:
    """Read the declaration and the schemas, and say what is wrong. Connects to nothing."""
    from driftline.operate.checks import print_checks

    raise typer.Exit(print_checks(name))


@app.command()
def up(
    name: Name = None,
    local: Annotated[bool, typer.Option("--local", help="Bring an own Kafka, Valkey and schema registry.")] = False,
    partitions: Annotated[int, typer.Option(help="Partitions of each data topic, where they are created.")] = 2,
    folder: Annotated[Path, typer.Option(help="Where the run keeps its files.")] = Path(".driftline"),
) -> None:
    """Start every service of a pipeline. Ctrl-C drains and stops them."""
    from driftline.operate.addresses import one_pipeline
    from driftline.operate.running import run_all

    raise typer.Exit(run_all(one_pipeline(name), local=local, partitions=partitions, folder=folder))


@app.command()
def topics(
    name: Name = None,
    partitions: Annotated[int, typer.Option(help="Partitions of each data topic; they cannot be changed later.")] = 2,
    upstream: Annotated[bool, typer.Option("--upstream", help="The applications' topics too, where nobody else makes them.")] = False,
) -> None:
    """Create the topics of a pipeline that do not exist yet: once, before its services start. Those that exist stay as they are."""
    from driftline.operate.addresses import kafka_of
    from driftline.operate.creation import make_topics

    asyncio.run(make_topics(kafka_of(), _declared(name), partitions, upstream=upstream))


@app.command()
def run(
    service: Annotated[str, typer.Argument(help=", ".join(SERVICES))],
    pipeline: Annotated[str, typer.Option("--pipeline", "-p", help="Folder in pipelines/.")],
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """
    Run one process of one pipeline: what a supervisor calls. Settings come from DRIFTLINE_* variables.

    A keeper imports and forks the worker, and forks again when it is killed; SIGTERM drains both.
    """
    gc.disable()  # what is imported stays; to walk over it meanwhile takes a sixteenth of the start
    from driftline import access
    from driftline.clock import SystemClock
    from driftline.contracts.avro import warm
    from driftline.logs import set_up
    from driftline.metrics import metric
    from driftline.settings import read
    from driftline.stream.keeper import keep

    if service not in SERVICES:
        raise Invalid(f"there is no service {service}; there are {', '.join(SERVICES)}")
    access.check()
    set_up(log_level, service=service, pipeline=pipeline)
    module = importlib.import_module(f"services.{service}.app")
    process = module.build(read(module.Settings, {**os.environ, "DRIFTLINE_PIPELINE": pipeline}), SystemClock())
    warm()
    gc.enable()

    def work(restarts: int) -> None:
        metric("driftline_worker_restarts_total").labels(pipeline=pipeline, service=service).inc(restarts)
        asyncio.run(process.run())

    raise typer.Exit(keep(work, SystemClock()))


@app.command()
def status(
    name: Name = None,
    ops: Annotated[
        list[str] | None,
        typer.Option("--ops", metavar="URL", help="Where a service answers /readyz; more than once. Or DRIFTLINE_OPS, with commas."),
    ] = None,
) -> None:
    """Processes, lags, model and open alarms. Exit 1 when something is not healthy."""

    from driftline.operate.addresses import ops_of
    from driftline.operate.status import print_status, read_status

    named = ops_of(ops or ())
    found = _ask(name, lambda addresses, declared: read_status(replace(addresses, ops=named or addresses.ops), declared))
    print_status(found, _console())
    raise typer.Exit(1 if found.troubles else 0)


@app.command()
def trace(event_id: Annotated[str, typer.Argument(help="Id that the upstream application gave.")], pipeline: Chosen = None) -> None:
    """One event through the loop, with every offset, its row, its answers and its label."""

    from driftline.operate.trace import print_trace, read_trace

    found = _ask(pipeline, lambda addresses, declared: read_trace(addresses, declared, event_id))
    print_trace(found, _declared(pipeline), _console())


@app.command()
def train(name: Name = None, because: Because = "an operator asked for a first model", wait_s: Wait = 600.0) -> None:
    """Train a first model when there is none, from what was answered and labelled so far."""
    _train(name, "first", because, wait_s)


@app.command()
def retrain(name: Name = None, because: Because = "an operator asked", wait_s: Wait = 600.0) -> None:
    """Send a retrain command and wait for its outcome. Exit 0 when a model was accepted."""
    _train(name, "operator", because, wait_s)


def _train(name: str | None, trigger: str, because: str, wait_s: float) -> None:
    from driftline.clock import SystemClock
    from driftline.operate.commands import retrain_command, send_to_trainer

    clock = SystemClock()

    async def send(addresses: Addresses, declared: Pipeline) -> Trained:
        return await send_to_trainer(addresses, declared, clock, retrain_command(declared, clock, trigger, because), wait_s)

    trained = _ask(name, send)
    typer.echo(
        f"{trained.outcome}: {trained.reason}"
        + (f"  ({trained.model} {trained.digest[:12]}, {trained.rows:,} rows)" if trained.model else "")
    )
    raise typer.Exit(0 if trained.outcome == "accepted" else 1)


@models_app.command("list")
def models_list(name: Name = None) -> None:
    """Every release with its verdict, every move of the rollout, and where it stands."""

    from driftline.operate.models import print_list, read_history

    print_list(_ask(name, read_history), _console())


@models_app.command("show")
def models_show(model: Annotated[str, typer.Argument(help="Name, or the beginning of its digest.")], pipeline: Chosen = None) -> None:
    """One release with all its evidence."""

    from driftline.operate.models import print_release, read_history

    history = _ask(pipeline, read_history)
    print_release(history.release(model), history, _console())


Meant = Annotated[
    str, typer.Argument(metavar="[MODEL]", help="Name or digest; the command is refused when another model is at hand.", show_default=False)
]


@models_app.command()
def approve(model: Meant = "", pipeline: Chosen = None, because: Because = "", wait_s: Wait = 10.0) -> None:
    """Let the waiting candidate into shadow."""
    _move("approve", model, pipeline, because, wait_s)


@models_app.command()
def promote(model: Meant = "", pipeline: Chosen = None, because: Because = "", wait_s: Wait = 10.0) -> None:
    """Take the candidate to its next share now."""
    _move("promote", model, pipeline, because, wait_s)


@models_app.command()
def rollback(model: Meant = "", pipeline: Chosen = None, because: Because = "", wait_s: Wait = 10.0) -> None:
    """Take the candidate out; without one, go back to the previous champion."""
    _move("rollback", model, pipeline, because, wait_s)


@models_app.command()
def pause(model: Meant = "", pipeline: Chosen = None, because: Because = "", wait_s: Wait = 10.0) -> None:
    """Stop all steps that time would take. Guardrails and rollback stay at work."""
    _move("pause", model, pipeline, because, wait_s)


@models_app.command()
def resume(model: Meant = "", pipeline: Chosen = None, because: Because = "", wait_s: Wait = 10.0) -> None:
    """Go on after a pause."""
    _move("resume", model, pipeline, because, wait_s)


def _move(action: str, model: str, pipeline: str | None, because: str, wait_s: float) -> None:
    from driftline.clock import SystemClock
    from driftline.operate.commands import operator_command, send_to_rollout

    clock = SystemClock()
    command = operator_command(clock, action, model, because)
    answer = _ask(pipeline, lambda addresses, declared: send_to_rollout(addresses, declared, clock, command, wait_s))
    typer.echo(f"{answer.move}: {answer.reason}  (version {answer.version}, {answer.state})")
    raise typer.Exit(1 if answer.move == "nothing" else 0)


@tokens_app.command("new")
def tokens_new(
    name: Annotated[str, typer.Argument(help="Whose token it is: the name goes on the log with every command.")],
    role: Annotated[list[str], typer.Option("--role", help="viewer, scorer, operator or approver; may be given several times.")],
) -> None:
    """Make a token and print it, once, with the line for the file that DRIFTLINE_TOKENS_FILE names."""
    from driftline.operate.tokens import new_token

    token, line = new_token(name, role)
    typer.echo(f"token, shown this once: {token}", err=True)
    typer.echo(line)


@app.command()
def reproduce(digest: Annotated[str, typer.Argument(help="Digest of a released model.")], pipeline: Chosen = None) -> None:
    """Train a released model again from the log and compare digests."""
    from driftline.operate.addresses import environment_of, find_addresses
    from driftline.operate.models import read_history
    from driftline.settings import read

    release = _ask(pipeline, read_history).release(digest)
    module = importlib.import_module("services.trainer.app")
    settings = read(module.Settings, environment_of(find_addresses(), _declared(pipeline).name))
    again: str = asyncio.run(module.reproduce(settings, release.digest))
    typer.echo(f"{release.model}  released {release.digest}\n{' ' * len(release.model)}  trained  {again}")
    typer.echo("the same" if again == release.digest else "different")
    raise typer.Exit(0 if again == release.digest else 1)


@app.command()
def audit(
    name: Name = None,
    *,
    chain: Annotated[bool, typer.Option("--chain", help="Who did what, when and why, and the proof that nobody has changed it.")] = False,
    expect: Annotated[
        str, typer.Option("--expect", metavar="LINK", help="With --chain: a head that was noted earlier has to be in it.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The score as JSON.")] = False,
) -> None:
    """
    The ML Test Score: 28 tests of production readiness, each judged by evidence from topics, metrics, tests and files of now.

    With --chain, the log of commands instead, and whether it is what it was. Exit 1 when it is not.
    """
    if expect and not chain:
        raise Invalid("--expect is about the chain: add --chain")
    if chain:
        from driftline.operate.audit import expected, print_audit, read_audit

        found = expected(_ask(name, read_audit), expect)
        print_audit(found, _console())
        raise typer.Exit(1 if found.findings else 0)
    import json

    from driftline.operate import ml_test_evidence, ml_test_score

    card = ml_test_score.scorecard(_ask(name, lambda addresses, declared: ml_test_evidence.gather(addresses, declared, Path.cwd())))
    if as_json:
        typer.echo(json.dumps(card.plain(), indent=2, ensure_ascii=False))
    else:
        ml_test_score.print_scorecard(card, _console())


@app.command("dead-letters")
def dead_letters(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PIPELINE] [list|show|replay] [TOPIC[P]@OFFSET]", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Only records refused for this reason.")] = "",
    topic: Annotated[str, typer.Option("--topic", help="Only records of this topic.")] = "",
    since: Annotated[str, typer.Option("--since", help="Only records written since: 90m, 12h, 7d ago, or a date.")] = "",
    newest: Annotated[int, typer.Option(help="How many show lists.")] = 20,
    payload: Annotated[bool, typer.Option("--payload", help="show: what the records hold, too. It may be personal.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="replay: only say what would be sent.")] = False,
    wait_s: Annotated[float, typer.Option("--wait-s", help="replay: how long to wait until intake has read them.")] = 30.0,
) -> None:
    """What was refused: list it by reason, show it, replay it to its topics. replay: exit 0 when all is accepted now."""
    from driftline.clock import SystemClock
    from driftline.operate import dead_letters as work

    clock, (name, action, place) = SystemClock(), _letter_words(words or [])
    wanted = work.Wanted(reason, topic, work.since_ms(since, clock.now_ms()) if since else 0, place)
    letters = _ask(name, lambda addresses, declared: work.read_letters(addresses, declared, wanted))
    if place and not letters:
        raise Invalid(f"there is no dead letter of {place}")
    if action == "list":
        work.print_reasons(letters, _console())
    elif place and action == "show":
        work.print_letter(letters[0], _console(), payload=payload, pii_key=work.pii_key())
    elif action == "show":
        work.print_letters(letters[-newest:], _console(), payload=payload, pii_key=work.pii_key())
    elif dry_run:
        some = len(work.replayable(_declared(name), letters))
        typer.echo(f"{some} of {len(letters)} would be sent again; the others are of our own topics or not kept whole")
    else:
        found = _ask(name, lambda addresses, declared: work.replay(addresses, declared, letters, work.pii_key(), clock, wait_s))
        typer.echo(f"{found.accepted} of {found.sent} accepted now")
        for many, words_ in (
            (len(found.refused), "refused again: driftline dead-letters list"),
            (found.unread, f"not read by intake within {wait_s:g} s: is it running?"),
            (found.kept_back, "not sent: of our own topics, or not kept whole"),
        ):
            if many:
                typer.echo(f"{many} {words_}")
        raise typer.Exit(0 if found.accepted == found.sent else 1)


def _letter_words(words: list[str]) -> tuple[str | None, str, str]:
    """Pipeline, action and place, in whichever order they were given."""
    actions = [word for word in words if word in ("list", "show", "replay")]
    places = [word for word in words if "@" in word]
    names = [word for word in words if word not in actions and word not in places]
    if max(map(len, (actions, places, names))) > 1:
        raise Invalid(f"dead-letters {' '.join(words)}: give one pipeline, one of list, show and replay, and one place at most")
    return next(iter(names), None), next(iter(actions), "show" if places else "list"), next(iter(places), "")


@app.command()
def rebuild(
    name: Name = None,
    service: Annotated[
        list[str] | None, typer.Option(help="feature, labeler or drift; all three when left out.", show_default=False)
    ] = None,
    partition: Annotated[int | None, typer.Option(help="Only this partition.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prove and compare; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write the new state though messages differ from those on the topics.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Fold nothing: delete state and offsets, so that the service begins at the log's start.")
    ] = False,
) -> None:
    """
    Fold the state of stopped services again from the log, prove that it gives what is on the topics, and write it.

    Exit 0: every partition was proved (or forced, or forgotten). Exit 1: something differs, and that partition was not written.
    """
    from driftline.operate import rebuild as work
    from driftline.operate.progress import following

    services = service or list(work.STATEFUL)
    if unknown := sorted(set(services) - set(work.STATEFUL)):
        raise Invalid(f"{', '.join(unknown)} keeps no state; there are {', '.join(work.STATEFUL)}")
    if forget:
        for one in _ask(name, lambda addresses, declared: work.forget(addresses, declared, services, partition)):
            typer.echo(str(one))
        return

    async def find(addresses: Addresses, declared: Pipeline) -> tuple[Addresses, str, list[work.Job]]:
        return addresses, declared.name, await work.jobs_of(addresses, declared, services, partition)

    addresses, pipeline, jobs = _ask(name, find)
    orders = work.Orders(dry_run=dry_run, force=force)
    with following(jobs, _console()) as told:
        rebuilt = work.rebuild(addresses, pipeline, jobs, orders, told)
    for one in rebuilt:
        typer.echo("\n  ".join([str(one), *one.told]))
    typer.echo(work.summary(rebuilt, orders))
    raise typer.Exit(0 if all(one.stands(orders) for one in rebuilt) else 1)


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the result; it must not exist yet, or be empty.")]
FromOffset = Annotated[int | None, typer.Option(help="Log: rows of events from this offset on.", show_default=False)]
ToOffset = Annotated[int | None, typer.Option(help="Log: rows of events before this offset.", show_default=False)]
FromTime = Annotated[str, typer.Option("--from", help="Rows of events visible since: 12h, 7d ago, or a date.")]
ToTime = Annotated[str, typer.Option("--to", help="Rows of events visible before: 12h, 7d ago, or a date.")]
OfPartition = Annotated[int | None, typer.Option("--partition", help="Log: only this partition.", show_default=False)]
Sort = Annotated[bool, typer.Option("--sort", help="Files: put their records in order of visible time first.")]
AsArrived = Annotated[bool, typer.Option("--as-arrived", help="Files: their order is that of arrival; go on as intake would.")]
Wide = Annotated[bool, typer.Option("--wide", help="Beside each packed row a column for each feature.")]
Files = Annotated[
    list[str] | None,
    typer.Option(
        "--file",
        "-f",
        metavar="[STREAM=]PATH",
        help="Records of a stream, Parquet or CSV: a file, a folder, or a pattern in quotes. Once a stream; again for more partitions.",
        show_default=False,
    ),
]


@app.command()
def backfill(
    name: Name = None,
    *,
    out: Out,
    files: Files = None,
    partition: OfPartition = None,
    from_offset: FromOffset = None,
    to_offset: ToOffset = None,
    from_time: FromTime = "",
    to_time: ToTime = "",
    sort: Sort = False,
    as_arrived: AsArrived = False,
    wide: Wide = False,
    verify: Annotated[bool, typer.Option("--verify", help="Then compare the rows with those that were served.")] = False,
) -> None:
    """
    Make the feature rows of the past: of files with the records of every stream, or, without any, of the pipeline's log.

    It is the fold that serves, so the rows are the same bytes. A row depends on everything before it, so files and log are read from
    their start, whichever rows are wanted. Exit 1: --verify found a difference.
    """
    from driftline.clock import SystemClock
    from driftline.operate import backfilling as work
    from driftline.operate.backfill import wide as by_feature

    clock, declared = SystemClock(), _declared(name)
    wanted = work.Wanted.of(partition, (from_offset, to_offset), (from_time, to_time), clock, sort=sort, as_arrived=as_arrived)
    _tell(work.make(declared, files or [], out, wanted, clock, _console(), [by_feature(declared.layout)] if wide else []))
    if verify:
        _judge(work.verify(declared, out, wanted, _console()))


@app.command()
def score(
    name: Name = None,
    *,
    out: Out,
    files: Files = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Name, digest, or the beginning of one; a whole digest needs no server. Else the champion.")
    ] = "",
    partition: OfPartition = None,
    from_offset: FromOffset = None,
    to_offset: ToOffset = None,
    from_time: FromTime = "",
    to_time: ToTime = "",
    sort: Sort = False,
    as_arrived: AsArrived = False,
    wide: Wide = False,
    verify: Annotated[bool, typer.Option("--verify", help="Then compare the scores with those that this model served.")] = False,
) -> None:
    """
    Score the past in one go: the questions of files with the records of every stream, or, without any, of the pipeline's log.

    Rows are made by the fold that serves and scored by the code that serves, so a score is that of the loop to the last bit. Exit 1:
    --verify found a difference, or nothing to compare.
    """
    from driftline.clock import SystemClock
    from driftline.operate import backfilling as work
    from driftline.operate.addresses import models_of
    from driftline.operate.backfill import wide as by_feature
    from driftline.operate.models import is_digest, read_history
    from driftline.settings import read

    clock, declared = SystemClock(), _declared(name)
    digest = model if is_digest(model) else _ask(name, read_history).model_meant(model)
    module = importlib.import_module("services.inference.batch")
    loaded = module.load(read(module.Settings, models_of()), digest)
    wanted = work.Wanted.of(partition, (from_offset, to_offset), (from_time, to_time), clock, sort=sort, as_arrived=as_arrived)
    more = [module.scorer(declared, loaded), *([by_feature(declared.layout)] if wide else [])]
    typer.echo(f"{loaded.manifest.model}  {digest[:12]}  alerts from {loaded.threshold:g}")
    _tell(work.make(declared, files or [], out, wanted, clock, _console(), more))
    if verify:
        _judge(work.compare_scores(declared, out, digest, _console()))


@app.command()
def export(
    kind: Annotated[str, typer.Argument(help="predictions, answers, outcomes, examples or rows.")],
    pipeline: Chosen = None,
    *,
    out: Out,
    partition: Annotated[int | None, typer.Option(help="Only this partition.", show_default=False)] = None,
    from_offset: Annotated[int, typer.Option(help="From this offset of the topic on.")] = 0,
    to_offset: Annotated[int | None, typer.Option(help="Up to before this offset.", show_default=False)] = None,
    wide: Annotated[bool, typer.Option("--wide", help="rows, answers: a column for each feature beside the packed row.")] = False,
) -> None:
    """Write what the loop has said to Parquet files: all of a topic up to now, or a range of its offsets, without copies."""
    from driftline.operate import exporting

    _tell(exporting.make(_declared(pipeline), kind, out, (partition, from_offset, to_offset), _console(), wide=wide))


@app.command()
def mirror(
    name: Name = None,
    *,
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Of MLflow's tracking server, as in http://127.0.0.1:5000.")],
) -> None:
    """Show the releases of a pipeline in MLflow: runs, model versions, aliases. What is there stays; call it as often as you like."""
    from driftline.operate.addresses import models_of
    from driftline.operate.mlflow_mirror import bundles_of
    from driftline.operate.mlflow_mirror import mirror as mirrored
    from driftline.operate.models import read_history

    declared = _declared(name)
    found = mirrored(declared, _ask(name, read_history), bundles_of(models_of()), to)
    typer.echo(found.line(declared.name, to))


class _Verdict(Protocol):
    """What a comparison came to."""

    @property
    def stands(self) -> bool: ...

    def lines(self) -> list[str]: ...


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _judge(found: _Verdict) -> None:
    """Tell it, and end with it as the exit status."""
    _tell(found.lines())
    raise typer.Exit(0 if found.stands else 1)


def _declared(name: str | None) -> Pipeline:
    from driftline.operate.addresses import one_pipeline
    from driftline.pipeline import load_pipeline

    return load_pipeline(one_pipeline(name))


def _ask(name: str | None, question: Callable[[Addresses, Pipeline], Coroutine[Any, Any, Result]]) -> Result:
    """Put a question to the servers about one pipeline."""
    from driftline import access
    from driftline.operate.addresses import find_addresses

    access.check()
    return asyncio.run(question(find_addresses(), _declared(name)))


def _console() -> Console:
    """Lines are cut to a terminal's width, and to none where they go to a file or another program."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=LINE_MAX)


def main() -> None:
    """The console command: what driftline raises on purpose is printed as words, with exit status 1."""
    try:
        app()
    except DriftlineError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

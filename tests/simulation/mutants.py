"""
Deliberate breaks of the protocol, a line each: text of a function that is replaced, the function compiled anew and put in place.

Where a break that one would think of has no counterpart in the code, its nearest equivalent is here, and the words say so.
"""

from __future__ import annotations
import __future__

import contextlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from .world import installed


@dataclass(frozen=True)
class Mutant:
    """`where` is module:function or module:Class.method; every pair of `changes` is an old text, there once, and the new one."""

    name: str
    words: str
    where: str
    changes: tuple[tuple[str, str], ...]
    only: str = ""  # the topology that is tried, where the others cannot show it
    harmless: bool = False

    def replacements(self) -> list[tuple[Any, str, Any]]:
        """
        Owner, attribute and the broken function, wherever it is known by name. Raises ValueError when the code around it has changed.
        """
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(module_name)
        owner: Any = module
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = inspect.getattr_static(owner, name)
        function = original.fget if isinstance(original, property) else original
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} is {source.count(old)} times in {self.where}, not once")
            source = source.replace(old, new)
        code = compile(source, module.__file__ or "", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
        names = dict(vars(module))
        exec(code, names)
        broken = names[name]
        if isinstance(broken, FunctionType):  # it must see the module's own names, which the simulation replaces
            broken = FunctionType(broken.__code__, vars(module), name, broken.__defaults__, broken.__closure__)
            broken.__kwdefaults__ = getattr(function, "__kwdefaults__", None)
        if owner is not module:
            return [(owner, name, broken)]
        ours = [one for key, one in list(sys.modules.items()) if key.startswith(("driftline.", "services."))]
        return [(one, name, broken) for one in ours if vars(one).get(name) is original]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The simulation with this one break in it."""
        with installed(self.replacements()):
            yield


WORKER, LEDGER, RECORDS, KAFKA = "driftline.stream.worker", "driftline.stream.ledger", "driftline.stream.records", "driftline.stream.kafka"
INTAKE, INTAKE_APP = "services.intake.core", "services.intake.app"
FEATURE, LABELER, INFERENCE = "services.feature.core", "services.labeler.core", "services.inference.core"

SEND = """        with self._timed("send"):
            await self._sink.send([*effects.messages, *letters], self._partition, now_ms)
"""
COMMIT = """            with self._timed("commit"):
                await self._ledger.commit(entry, state)
"""


def dedented(text: str) -> str:
    """A piece of a method, as it is when the method stands by itself."""
    return "\n".join(line.removeprefix("    ") for line in text.split("\n"))


MUTANTS = (
    Mutant(
        "commit before ack",
        "The ledger moves before what was made is sent.",
        f"{WORKER}:_Session._apply",
        (
            (dedented(SEND), ""),
            (dedented(COMMIT), dedented(COMMIT) + dedented(SEND).replace("\n    ", "\n        ").replace("    with", "        with", 1)),
        ),
    ),
    Mutant(
        "no compare-and-set",
        "The ledger is set without being compared or watched.",
        f"{LEDGER}:RedisLedger.commit",
        (
            ('commands: list[Command] = [(b"MULTI",)', 'commands: list[Command] = [(b"UNWATCH",), (b"MULTI",)'),
            ("if now != after:", "if False:"),
        ),
    ),
    Mutant(
        "rows read apart from the ledger",
        "Rows are taken whatever the ledger beside them says.",
        f"{LEDGER}:RedisLedger.rows",
        (("if found[0] != self._known:", "if False:"),),
    ),
    Mutant(
        "plain producer",
        "Neither idempotent nor acknowledged by all.",
        f"{KAFKA}:Sink.start",
        (("enable_idempotence=True,", "enable_idempotence=False,"), ('acks="all"', "acks=1")),
    ),
    Mutant(
        "no re-check when idle",
        "Who has nothing to do does not look at the ledger.",
        f"{WORKER}:_Session._idle",
        (("await self._ledger.check()", "pass"),),
    ),
    Mutant(
        "no dedupe after a merge",
        "Copies are handed to the core.",
        f"{RECORDS}:drop_seen",
        (("if fresh.all():", "if True:"),),
    ),
    Mutant(
        "watermark without output index",
        "A lane is remembered by the offset alone, so of what one cause made only the first is taken.",
        f"{RECORDS}:drop_seen",
        (('np.concatenate([table["index"] for table in tables])[log_order],', "np.zeros(len(lanes), np.int64),"),),
    ),
    Mutant(
        "a nil EXEC taken for done",
        "The answer to a transaction that was not executed is taken for success, and what is there for what was written. (Without the "
        "latter the next compare would fence it, and no harm be done.)",
        f"{LEDGER}:RedisLedger.commit",
        (
            (
                'raise Fenced("another process moved the ledger during the commit")',
                "self._known = now\n        return",
            ),
        ),
    ),
    Mutant(
        "wall-clock timers",
        "The labeler settles by what the machine's clock shows, not by the journal's time.",
        f"{LABELER}:Labeler.step",
        (
            (
                "moves = passage.moves",
                "moves = passage.moves; moves.times[:] = "
                "__import__('tests.simulation.world').simulation.world.World.current.clock.now_ms()",
            ),
        ),
    ),
    Mutant(
        "client retries on",
        "The store's client sends a commit again that it had no reply to, on whichever connection.",
        f"{LEDGER}:RedisLedger.commit",
        (
            (
                'await self._store.ask(*commands, (b"EXEC",), *self._look, on=self._watched_on)',
                'await self._store.asked_again(*commands, (b"EXEC",), *self._look)',
            ),
        ),
    ),
    Mutant(
        "poll before ready",
        "Partitions are fixed, so nothing is delivered before it is asked for; the equivalent: where to go on is taken from the group's "
        "committed offset and not from the ledger.",
        f"{WORKER}:_Session.acquire",
        (("self.position = start if entry is None else entry.next", "self.position = start if committed is None else committed"),),
    ),
    Mutant(
        "offset reset to latest",
        "A consumer whose place is gone goes on at the end.",
        f"{KAFKA}:Source.__init__",
        (('auto_offset_reset="none"', 'auto_offset_reset="latest"'),),
        only="one input",
    ),
    Mutant(
        "dead letter after commit",
        "Dead letters are sent behind the commit.",
        f"{WORKER}:_Session._apply",
        (
            ("[*effects.messages, *letters], self._partition", "effects.messages, self._partition"),
            (
                "    self._operator.dead_letters.sent(",
                "    await self._sink.send(letters, self._partition, now_ms)\n    self._operator.dead_letters.sent(",
            ),
        ),
    ),
    Mutant(
        "touched rows only partly written",
        "Of the rows that a step touched the last is left out.",
        f"{LEDGER}:RedisLedger.commit",
        (
            (
                "there = columns.rows.starts >= 0",
                "there = (columns.rows.starts >= 0) & (__import__('numpy').arange(len(columns)) < max(1, len(columns) - 1))",
            ),
        ),
    ),
    Mutant(
        "a row that sees records of its own visible time",
        "A question is asked as of a millisecond later.",
        "driftline.features.views:Views.fold",
        (
            (
                'visible = np.ascontiguousarray(events.table["visible"], np.int64)',
                'visible = np.array(events.table["visible"], np.int64)\n    visible[questions.places] += 1',
            ),
        ),
    ),
    Mutant(
        "what was read is committed",
        "Intake commits what it has read, not what is on the log.",
        f"{INTAKE}:Intake.standing",
        (("if first is None else (first, queue.sent)", ""),),
        only="merge",
    ),
    Mutant(
        "intake forgets the last tick",
        "A restart counts ticks from the next record on.",
        f"{INTAKE_APP}:IntakePart._connect",
        (('ticks.append(told["tick"])', "pass"),),
        only="merge",
    ),
    Mutant(
        "a backlog is not waited for",
        "The log goes as far as the fastest source.",
        f"{INTAKE}:Intake.bound",
        (("if not complete(origin)", "if not complete(origin) and queue.newest"),),
        only="merge",
    ),
    Mutant(
        "ties as they arrived",
        "Records of one time are not ordered by source.",
        f"{INTAKE}:_Merged.of",
        (("np.lexsort((arrived.offsets, partitions, streams, times))", "np.lexsort((-streams, times))"),),
        only="merge",
    ),
    Mutant(
        "ends asked for one by one",
        "Live, what arrived between the asking of two ends goes at once.",
        f"{INTAKE_APP}:IntakePart._live_horizon",
        (("self._deployment, ends, known)", "self._deployment, ends)"),),
        only="live",
    ),
    Mutant(
        "joined on arrival",
        "The labeler takes outcomes that the journal's time has not passed.",
        f"{LABELER}:Labeler._arrived_outcomes",
        (('"epoch": epochs,', '"epoch": NEVER,'),),
        only="join",
    ),
    Mutant(
        "the faster writer",
        "The journal's time is the higher of its two writers' ticks.",
        "driftline.stream.journal:JournalTime.take",
        (("passed[0].numbers <= passed[1].numbers", "passed[0].numbers > passed[1].numbers"),),
        only="join",
    ),
    Mutant(
        "broadcast views fold at home alone",
        "Copies of other partitions' records are not folded.",
        "driftline.features.events:Reader._lookups",
        (("if folds and view.broadcast:", "if False:"),),
        only="broadcast",
    ),
    Mutant(
        "state in memory alone",
        "The deployment in force is not kept with the ledger.",
        f"{FEATURE}:Feature.step",
        (("state = state.plus(META, META_FORMAT.pack(*self._meta))", "pass"),),
    ),
    Mutant(
        "seen does not move",
        "The ledger keeps the coordinates of the batch before.",
        f"{WORKER}:_Session._apply",
        (("self._entry(batch.next_offset, seen,", "self._entry(batch.next_offset, self._seen,"),),
    ),
    Mutant(
        "tries are cleared behind the commit",
        "As it was once: a count that outlives the progress is held against the next record.",
        f"{LEDGER}:RedisLedger.commit",
        (("if deletes or self._counted:", "if deletes:"), ("*deletes, *self._counted)", "*deletes)")),
        only="input",
    ),
    Mutant(
        "a poisoned record is tried for ever",
        "Nothing is set aside, however often it has killed the process.",
        f"{WORKER}:_Session._is_poison",
        (("<= ALONE_MAX", "<= 2**62"),),
        only="input",
    ),
    Mutant(
        "the neighbour is blamed",
        "As it was once: partitions do not take turns when one of them has stopped too often.",
        f"{WORKER}:Turns.suspect",
        (("(self._suspects.add if whether else self._suspects.discard)(partition)", "pass"),),
        only="broadcast",
    ),
    Mutant(
        "the end before the ledger",
        "As it was once: the log's end is asked for before the ledger is read.",
        f"{WORKER}:_Session.acquire",
        (
            ("start, end = await self._source.bounds()\n", "pass\n"),
            (
                "committed = await self._source.committed()",
                "start, end = await self._source.bounds()\n    committed = await self._source.committed()",
            ),
        ),
    ),
    Mutant(
        "any cancellation is ours",
        "As it was once: a cancellation that a client lets through ends whoever stops it.",
        f"{KAFKA}:cancelled",
        (("task is not None and task.cancelling() > 0", "True"),),
    ),
    Mutant(
        "batches sent without waiting",
        "What goes to one partition is sent all at once, so a batch may be written and the one before it not.",
        f"{KAFKA}:Outlet.put",
        (
            (
                "        await (await self._started().send_batch(batch, topic, partition=partition))",
                "        ack = await self._started().send_batch(batch, topic, partition=partition)\n    await ack",
            ),
        ),
    ),
    Mutant(
        "sent as listed",
        "What several causes made is sent by kind, not by cause.",
        f"{KAFKA}:Sink._send_in_order",
        (('np.argsort(np.concatenate([one.order for one in group]), kind="stable")', "np.arange(len(values))"),),
    ),
    Mutant(
        "the offset before the acks",
        "An operator without a ledger commits its offset before its messages are acked.",
        f"{WORKER}:_Session._apply",
        (
            (
                dedented(SEND),
                "    if self._ledger is None:\n        self.position = batch.next_offset\n        await self.mark()\n" + dedented(SEND),
            ),
        ),
        only="stateless",
    ),
    Mutant(
        "one index for all shadows",
        "Answers of several shadows to one row have one coordinate.",
        f"{INFERENCE}:Inference._shadowed",
        (("index=1 + number", "index=1"),),
        only="stateless",
    ),
    Mutant(
        "the newest deployment",
        "Inference scores by the newest deployment that it knows, not by the one that the row names.",
        f"{INFERENCE}:Inference._by_deployment",
        (("return [(self._deployments[version],", "return [(self._deployments[max(self._deployments)],"),),
        only="stateless",
    ),
    Mutant(
        "another definition goes on",
        "A definition that changed in a rolling upgrade folds into the rows of the old one.",
        f"{WORKER}:_Session._verify",
        (('("digest", "the definition"),', ""), ('("row_format", "the row format"),', "")),
        only="one input",
    ),
    Mutant(
        "more partitions go on",
        "A partition count that was raised is not noticed.",
        f"{WORKER}:_Session._verify",
        (('("partitions", "the number of partitions"),', ""),),
        only="one input",
    ),
    Mutant(
        "another log goes on",
        "A log that was made anew is gone on with.",
        f"{WORKER}:_Session._verify",
        (("if polled.anchor(polled.first + 1) != entry.anchor:", "if False:"),),
        only="one input",
    ),
    Mutant(
        "a lost store is begun anew",
        "Where there is no ledger, empty state is folded from wherever the log begins now.",
        f"{WORKER}:_Session.acquire",
        (("if entry is None and committed is not None:", "if False:"),),
        only="one input",
    ),
)

HARMLESS = Mutant(
    "a copy of a dict",
    "Nothing is broken by it: the checks must not cry wolf.",
    f"{WORKER}:_Session._entry",
    (("dict(seen)", "dict(sorted(seen.items()))"),),
    harmless=True,
)

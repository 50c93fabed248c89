"""
Everything that can be wrong with a pipeline file, worded for the person who wrote it, with the line that it is about.

Checking and resolving are one walk over the declaration: what cannot be resolved is a problem, and what was resolved is what the
services read. The walk goes on after a problem, so that one run names all of them.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from driftline import declaration, f
from driftline.definition import NUMBERS, Aggregate, Condition, Direct, Feature, Label, Pipeline, Reading, Stream, View, type_of
from driftline.features.row import DIRECT, RowLayout

DAY_MS = 86_400_000
TILES = 12  # a window's hop is a twelfth of it
NAME = re.compile(r"[a-z][a-z0-9-]*")
RESERVED = ("ids", "meta", "question")  # what the state's rows and the reason codes call their own
DUPLICATES_MAX = 4096
EXACT = ("last", "seconds_since", "ewma")  # no tiles, so no twelfths
ALLOWED = "string, boolean, int, long, float, double or timestamp-millis, each of them with null or without"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend: where it is, what is written there, and what to do about it."""

    file: str
    line: int
    where: str
    text: str

    def __str__(self) -> str:
        indented = self.text.replace("\n", "\n  ")
        return f"{self.file}:{self.line}: {self.where}\n  {indented}"


def foreign_imports(tree: ast.Module, file: str) -> list[Problem]:
    """The imports of anything but driftline, found before any of them is made."""
    return [
        Problem(
            file,
            node.lineno,
            ast.unparse(node),
            f"this file is loaded by every process, and not every process has {name}.\n"
            "Import from driftline alone; a model is named by its recipe, as in model=LightGBM(...).",
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _imported(node)
        if name not in ("driftline", "__future__")
    ]


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "") if node.level else (node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names]


class Checker:
    """Walks over what a file declares. `names` has the streams, views and pipelines of the file, in its order."""

    def __init__(self, folder: Path, file: str, names: Mapping[str, Any]) -> None:
        self.problems: list[Problem] = []
        self._folder = folder
        self._file = file
        self._streams: dict[str, declaration.Stream] = {
            name: value for name, value in names.items() if isinstance(value, declaration.Stream)
        }
        self._views: dict[str, declaration.View] = {name: value for name, value in names.items() if isinstance(value, declaration.View)}
        self._pipelines = [value for value in names.values() if isinstance(value, declaration.Pipeline)]
        self._resolved: dict[int, Stream] = {}  # by identity of what was declared

    def resolve(self) -> Pipeline | None:
        """The pipeline, as far as it could be resolved: to be used only where `problems` stays empty."""
        if len(self._pipelines) != 1:
            text = "declare one, pipeline = Pipeline(...)." if not self._pipelines else "one folder declares one pipeline."
            self.problems.append(Problem(self._file, 1, f"{len(self._pipelines)} pipelines in this file", text))
            return None
        declared = self._pipelines[0]
        self._named(declared)
        self._resolve_streams()
        if self._problem_of_streams(declared):
            return None
        question = self._resolved[id(declared.question)]
        views = self._resolve_views(declared, question)
        inputs = self._resolve_inputs(declared, views)
        label = self._resolve_label(declared, question)
        self._settings(declared, question)
        return None if self.problems else self._assemble(declared, question, label, views, inputs)

    def _say(self, place: f.Place, where: str, text: str) -> None:
        self.problems.append(Problem(self._file, place.line, where, text))

    # The pipeline itself.

    def _named(self, declared: declaration.Pipeline) -> None:
        if declared.name != self._folder.name:
            self._say(declared.place, f'Pipeline("{declared.name}")', f'it lies in the folder "{self._folder.name}"; name both the same.')
        if not NAME.fullmatch(declared.name):
            text = "its topics are named after it: lower-case letters, digits and hyphens, a letter first."
            self._say(declared.place, f'Pipeline("{declared.name}")', text)

    def _problem_of_streams(self, declared: declaration.Pipeline) -> bool:
        """Whether the streams themselves are in no state to check what is built on them."""
        if id(declared.question) not in self._resolved and not self.problems:
            self._say(declared.place, "question", "it is no stream of this file: write name = Stream(...) and question=name.")
        return bool(self.problems)

    def _settings(self, declared: declaration.Pipeline, question: Stream) -> None:
        if declared.window_ms % declared.tick_ms:
            text = f"a window of {f.duration_text(declared.window_ms)} is no whole number of ticks of {f.duration_text(declared.tick_ms)}."
            self._say(declared.place, "tick", text)
        for name in declared.slices:
            kind = question.types.get(name)
            if kind is None:
                self._say(declared.place, f'slices: "{name}"', self._no_field([question], name))
            elif kind.rstrip("?") not in ("string", "boolean", "int", "long"):
                self._say(declared.place, f'slices: "{name}"', f"it is a {kind}; slices are told apart by text, whole numbers or booleans.")

    # Streams.

    def _resolve_streams(self) -> None:
        seen: dict[str, str] = {}
        for number, (name, declared) in enumerate(self._streams.items()):
            if declared.topic in seen:
                text = f'the topic "{declared.topic}" is the stream "{seen[declared.topic]}" already: one topic is one stream.'
                self._say(declared.place, f'Stream "{name}"', text)
            seen.setdefault(declared.topic, name)
            schema = self._schema(name, declared)
            if schema is not None and self._fields_named(name, declared, schema):
                self._resolved[id(declared)] = self._stream(name, number, declared, schema)

    def _stream(self, name: str, number: int, declared: declaration.Stream, schema: Mapping[str, Any]) -> Stream:
        return Stream(
            name,
            number,
            declared.topic,
            schema,
            declared.id,
            declared.key,
            declared.time,
            declared.visible,
            declared.lateness_ms,
            declared.duplicates_ms,
            declared.duplicates_max,
            tuple(field["name"] for field in schema["fields"] if field.get("pii")),
            any(view.broadcast and any(stream is declared for stream in view.of) for view in self._views.values()),
        )

    def _schema(self, name: str, declared: declaration.Stream) -> Mapping[str, Any] | None:
        where = f'Stream "{name}": {declared.schema}'
        path = self._folder / declared.schema
        if not path.is_file():
            there = sorted(one.name for one in self._folder.glob("*.avsc"))
            self._say(
                declared.place,
                where,
                f"there is no such file beside pipeline.py. There {'are ' + ', '.join(there) if there else 'is none'}.",
            )
            return None
        try:
            schema = json.loads(path.read_text())
        except ValueError as error:
            self._say(declared.place, where, f"the file is not JSON: {error}.")
            return None
        if not _is_record(schema):
            self._say(declared.place, where, "the schema is no Avro record with fields.")
            return None
        odd = [field["name"] for field in schema["fields"] if not type_of(field["type"])]
        if odd:
            self._say(declared.place, where, f"the type of {_quoted(odd)} cannot be read; a field is {ALLOWED}.")
        return None if odd else schema

    def _fields_named(self, name: str, declared: declaration.Stream, schema: Mapping[str, Any]) -> bool:
        """Whether id, key, time and visible name fields of the right type."""
        types = {field["name"]: type_of(field["type"]) for field in schema["fields"]}
        wanted = (
            ("id", declared.id, ("string", "int", "long"), "tell a record from its copy"),
            ("key", declared.key, ("string", "int", "long"), "place a record in a partition"),
            ("time", declared.time, ("timestamp-millis", "long"), "order records"),
            ("visible", declared.visible if declared.visible != declared.time else "", ("timestamp-millis", "long"), "order records"),
        )
        before = len(self.problems)
        for role, field, kinds, purpose in wanted:
            if not field and role != "visible":
                self._say(
                    declared.place, f'Stream "{name}"', f"it has no {role}: nothing says by which field to {purpose}. Add {role}='...'."
                )
            elif field and field not in types:
                self._say(
                    declared.place,
                    f'Stream "{name}": {role}="{field}"',
                    _no_such_field(f'the schema {declared.schema} has no field "{field}".', field, types),
                )
            elif field and types[field] not in kinds:
                self._say(
                    declared.place,
                    f'Stream "{name}": {role}="{field}"',
                    f"it is {types[field]}; to {purpose} it must be {' or '.join(kinds)}, never null.",
                )
        if not 1 <= declared.duplicates_max <= DUPLICATES_MAX:
            self._say(declared.place, f'Stream "{name}": duplicates', f"between 1 and {DUPLICATES_MAX} ids can be remembered for a key.")
        return len(self.problems) == before

    # Views and features.

    def _resolve_views(self, declared: declaration.Pipeline, question: Stream) -> dict[int, View]:
        for value in declared.inputs:
            if isinstance(value, declaration.View) and not any(value is view for view in self._views.values()):
                self._say(value.place, "inputs: View(...)", "a view needs a name, for reasons and charts: write name = View(...) above.")
        return {id(view): self._view(name, view, declared, question) for name, view in self._views.items()}

    def _view(self, name: str, view: declaration.View, declared: declaration.Pipeline, question: Stream) -> View:
        where = f'View "{name}"'
        if name in RESERVED:
            self._say(view.place, where, f'"{name}" has a meaning of its own; call it something else.')
        if not any(value is view for value in declared.inputs):
            self._say(view.place, where, "it is not among the inputs. Add it there, or delete it.")
        unknown = [stream for stream in view.of if id(stream) not in self._resolved]
        if unknown or not view.of:
            self._say(view.place, f"{where}: of", f"it is built on no stream of this file. There are {_quoted(self._streams)}.")
        streams = tuple(dict.fromkeys(self._resolved[id(stream)] for stream in view.of if id(stream) in self._resolved))
        self._entity(where, view, streams, question)
        features = tuple(self._feature(where, key, value, streams, declared) for key, value in view.features.items())
        if not features:
            self._say(view.place, where, "it has no features: name them as keywords, as in count_24h=f.count(...).")
        return View(name, streams, tuple(view.by), view.broadcast, features)

    def _entity(self, where: str, view: declaration.View, streams: Sequence[Stream], question: Stream) -> None:
        if not view.by:
            self._say(view.place, f"{where}: by", "it names no field to find the entity by.")
        elif any([self._unfit_key(where, view, field, streams, question) for field in view.by]) or view.broadcast:
            return
        elif not all(stream.key == question.key and stream.key in view.by for stream in streams):
            text = f'its entity does not contain the key of the question, "{question.key}", so its records lie in other partitions.'
            self._say(view.place, where, f"{text}\nFor a small number of entities add broadcast=True.")

    def _unfit_key(self, where: str, view: declaration.View, field: str, streams: Sequence[Stream], question: Stream) -> bool:
        """Whether a stream of the view, or the question, cannot name the entity by `field`: says so for the first."""
        for stream in (*streams, question):
            kind = stream.types.get(field)
            if kind is None:
                missing = self._no_field([stream], field, " (the question)" if stream is question else "")
                shared = "A view finds its entity by fields that its streams and the question share."
                self._say(view.place, f'{where}: by="{field}"', f"{missing}\n{shared}")
                return True
            if kind.rstrip("?") not in ("string", "int", "long"):
                text = f"it is {kind} in {stream.name}; an entity is named by text or whole numbers."
                self._say(view.place, f'{where}: by="{field}"', text)
                return True
        return False

    def _feature(self, where: str, name: str, expression: Any, streams: Sequence[Stream], declared: declaration.Pipeline) -> Feature:
        if not isinstance(expression, f.Aggregate | f.Combination):
            self._say(declared.place, f"{where}: {name}", "it is no aggregate: write one as in f.count(...) or f.mean(...).")
            return Feature(name, ())
        terms = []
        for sign, aggregate in f.terms_of(expression):
            if (resolved := self._aggregate(f"{where}: {aggregate.place.text}", aggregate, streams, declared)) is not None:
                terms.append((sign, resolved))
        return Feature(name, tuple(terms))

    def _aggregate(self, where: str, aggregate: f.Aggregate, streams: Sequence[Stream], declared: declaration.Pipeline) -> Aggregate | None:
        found = self._reading(where, aggregate, streams)
        if found is None:
            return None
        stream, reading = found
        self._window(where, aggregate, stream, declared)
        return Aggregate(
            aggregate.function, stream.number, reading, aggregate.window_ms, aggregate.ending_ms, aggregate.ready_after_ms, aggregate.most
        )

    def _window(self, where: str, aggregate: f.Aggregate, stream: Stream, declared: declaration.Pipeline) -> None:
        window = aggregate.window_ms
        if window == 0 or (aggregate.function not in EXACT and window % TILES):
            text = f"a window is kept in {TILES} tiles of whole milliseconds, so {window} ms must be a multiple of {TILES}, above 0."
            self._say(aggregate.place, where, text)
        needed = window + aggregate.ending_ms + stream.lateness_ms
        if needed > declared.retention_ms:
            kept, reach = f.duration_text(declared.retention_ms), f.duration_text(window + aggregate.ending_ms)
            back = "a window that reaches back" if aggregate.ending_ms else "a window of"
            problem = f"the topic {declared.name}-events keeps {kept}, so {back} {reach} could not be rebuilt from it."
            way_out = f'Shorten the window, or set retention="{-(-needed // DAY_MS)}d" (window + lateness) on the pipeline.'
            self._say(aggregate.place, where, f"{problem}\n{way_out}")

    def _reading(self, where: str, aggregate: f.Aggregate, streams: Sequence[Stream]) -> tuple[Stream, Reading | None] | None:
        """Which stream an aggregate is over, and what it reads there."""
        what, takes_records = aggregate.what, aggregate.function in ("count", "seconds_since")
        if isinstance(what, f.Condition):
            if takes_records or aggregate.function == "rate":
                return self._condition(where, aggregate.place, what, streams)
            self._no_value(where, aggregate)
            return None
        if what is None or isinstance(what, declaration.Stream):
            stream = self._of(where, aggregate.place, what, streams)
            if not takes_records:
                self._no_value(where, aggregate)
            return None if stream is None else (stream, None)
        if takes_records:
            example = f"f.{aggregate.function}({streams[0].name if streams else 'payments'}, ...)"
            self._say(aggregate.place, where, f"f.{aggregate.function} takes a stream or a condition, as in {example}.")
            return None
        return self._value(where, aggregate, what, streams)

    def _no_value(self, where: str, aggregate: f.Aggregate) -> None:
        self._say(aggregate.place, where, f"f.{aggregate.function} takes a field, by name or as in f.clip(...).")

    def _of(self, where: str, place: f.Place, stream: declaration.Stream | None, streams: Sequence[Stream]) -> Stream | None:
        if stream is None and len(streams) == 1:
            return streams[0]
        if stream is None and not streams:
            return None
        if stream is None:
            self._say(place, where, f"the view is built on {_quoted(one.name for one in streams)}: say which of them is meant.")
            return None
        resolved = self._resolved.get(id(stream))
        if resolved is None or resolved not in streams:
            called = next((name for name, one in self._streams.items() if one is stream), "?")
            self._say(place, where, f'the stream "{called}" is not one that the view is built on. Add it to of=[...].')
            return None
        return resolved

    def _value(self, where: str, aggregate: f.Aggregate, what: Any, streams: Sequence[Stream]) -> tuple[Stream, Reading] | None:
        declared = getattr(what, "stream", None)
        name = what if isinstance(what, str) else getattr(what, "field", None) or getattr(what, "name", None)
        if not isinstance(name, str):
            self._no_value(where, aggregate)
            return None
        stream = self._having(where, aggregate.place, declared, name, streams)
        if stream is None:
            return None
        kind = stream.types[name].rstrip("?")
        if kind not in (*NUMBERS, "boolean") and aggregate.function != "distinct":
            self._say(aggregate.place, where, f'"{name}" is {kind}; f.{aggregate.function} takes numbers.')
        if isinstance(what, f.Clip):
            if kind not in NUMBERS:
                self._say(aggregate.place, where, f'"{name}" is {kind}; f.clip takes numbers.')
            return stream, Reading(name, what.low, what.high)
        return stream, Reading(name)

    def _condition(self, where: str, place: f.Place, condition: f.Condition, streams: Sequence[Stream]) -> tuple[Stream, Reading] | None:
        stream = self._having(where, place, condition.stream, condition.field, streams)
        if stream is None:
            return None
        kind, value = stream.types[condition.field].rstrip("?"), condition.value
        if not isinstance(value, str | int | float) or isinstance(value, str) != (kind == "string"):
            self._say(place, where, f'"{condition.field}" is {kind}, which cannot be compared with {value!r}.')
            return None
        if kind == "string" and condition.op not in ("==", "!="):
            self._say(place, where, f'"{condition.field}" is text, which is equal or not equal, never {condition.op}.')
        return stream, Reading(condition.field, condition=Condition(condition.field, condition.op, value))

    def _having(
        self, where: str, place: f.Place, declared: declaration.Stream | None, field: str, streams: Sequence[Stream]
    ) -> Stream | None:
        """The one stream of the view that has `field`."""
        if declared is not None:
            stream = self._of(where, place, declared, streams)
            candidates = [] if stream is None else [stream]
        else:
            candidates = list(streams)
        having = [stream for stream in candidates if field in stream.types]
        if len(having) > 1:
            self._say(
                place,
                where,
                f'{_quoted(stream.name for stream in having)} have a field "{field}": say which is meant, as in {having[0].name}.{field}.',
            )
        elif candidates and not having:
            self._say(place, where, self._no_field(candidates, field))
        return having[0] if len(having) == 1 else None

    def _no_field(self, streams: Sequence[Stream], field: str, asked: str = "") -> str:
        types = {name: kind for stream in streams for name, kind in stream.types.items()}
        what = (
            f"the stream {_quoted([streams[0].name])}{asked} has"
            if len(streams) == 1
            else f"none of the streams {_quoted(stream.name for stream in streams)} has"
        )
        negation = "no" if len(streams) == 1 else "a"
        return _no_such_field(f'{what} {negation} field "{field}".', field, types)

    # Inputs and label.

    def _resolve_inputs(self, declared: declaration.Pipeline, views: Mapping[int, View]) -> list[View | Direct]:
        inputs: list[View | Direct] = []
        seen: dict[str, str] = {}
        if not declared.inputs:
            self._say(declared.place, "inputs", "a model needs at least one input.")
        for value in declared.inputs:
            if isinstance(value, f.Direct):
                direct = self._direct(value, declared)
                inputs.append(direct)
                self._unique(seen, value.place, direct.name, "inputs")
            elif id(value) in views:
                view = views[id(value)]
                inputs.append(view)
                for feature in view.features:
                    self._unique(seen, value.place, feature.name, f'View "{view.name}"')
            elif not isinstance(value, declaration.View):
                self._say(declared.place, "inputs", f"{value!r} is neither a view nor an input of the question, as f.value(...) is.")
        return inputs

    def _unique(self, seen: dict[str, str], place: f.Place, name: str, where: str) -> None:
        if name in seen:
            text = f"there is a feature of this name in {seen[name]} already. Charts and reasons go by the name: give each its own."
            self._say(place, f'{where}: "{name}"', text)
        seen.setdefault(name, where)

    def _direct(self, value: f.Direct, declared: declaration.Pipeline) -> Direct:
        question = self._resolved[id(declared.question)]
        where = f"inputs: {value.place.text}"
        kind = question.types.get(value.field)
        if declared.label is not None and self._decided_later(value.field, declared.label, question):
            self._say(value.place, where, self._from_the_future(value.field, declared.label))
        elif kind is None:
            self._say(value.place, where, self._no_field([question], value.field))
        elif value.function == "value" and kind.rstrip("?") not in (*NUMBERS, "boolean"):
            self._say(value.place, where, f'"{value.field}" is {kind}; an input is a number or a boolean.')
        elif value.function != "value" and kind.rstrip("?") != "timestamp-millis":
            self._say(value.place, where, f'"{value.field}" is {kind}; f.{value.function} takes a timestamp.')
        if value.zone and not _is_zone(value.zone):
            self._say(value.place, where, f'there is no time zone "{value.zone}"; one is named as in "America/New_York".')
        return Direct(value.name or (value.field if value.function == "value" else value.function), value.function, value.field, value.zone)

    def _decided_later(self, field: str, label: declaration.Label, question: Stream) -> bool:
        """Whether `field` says what the label says: it is the label's own, or only the label's stream has it."""
        told = self._resolved.get(id(label.of))
        if told is None:
            return False
        return field == label.when.field if told is question else field in told.types and field not in question.types

    def _from_the_future(self, field: str, label: declaration.Label) -> str:
        told = self._resolved[id(label.of)].name
        return (
            f'"{field}" is decided by the label stream "{told}", up to {f.duration_text(label.horizon_ms)} after the question is scored.\n'
            f'A model that reads it would learn from the future. Build a view on "{told}" instead; it sees only what is already known.'
        )

    def _resolve_label(self, declared: declaration.Pipeline, question: Stream) -> Label | None:
        label = declared.label
        if label is None:
            return None
        where = f'Label "{label.name}"'
        told = self._resolved.get(id(label.of))
        if told is None:
            self._say(label.place, f"{where}: of", f"it is told by no stream of this file. There are {_quoted(self._streams)}.")
            return None
        if question.id not in told.types:
            text = f'the stream "{told.name}" has no field "{question.id}", which is the id of the question'
            self._say(label.place, where, f"{text}: nothing says which question it answers.")
        elif told.types[question.id] != question.types[question.id]:
            self._say(
                label.place,
                where,
                f'"{question.id}" is {told.types[question.id]} in "{told.name}" and {question.types[question.id]} in the question.',
            )
        if told.key != question.key:
            text = f'the stream "{told.name}" has the key "{told.key}", the question "{question.key}"'
            self._say(label.place, where, f"{text}: outcome and answer would lie in different partitions.")
        if label.horizon_ms == 0:
            self._say(label.place, f"{where}: horizon", "it must be longer than nothing.")
        when = self._condition(f"{where}: when", label.place, label.when, [told])
        if when is None or when[1].condition is None:
            return None
        return Label(label.name, told, when[1].condition, label.horizon_ms, label.if_silent, label.revisions_ms, label.waiting_max)

    # What comes out.

    def _assemble(
        self,
        declared: declaration.Pipeline,
        question: Stream,
        label: Label | None,
        views: Mapping[int, View],
        inputs: Sequence[View | Direct],
    ) -> Pipeline:
        streams = tuple(self._resolved[id(stream)] for stream in self._streams.values())
        every = tuple(views.values())
        digest = digest_of(streams, question, every, inputs, declared.slices)
        return Pipeline(
            name=declared.name,
            owner=declared.owner,
            folder=self._folder,
            streams=streams,
            question=question,
            label=label,
            views=every,
            inputs=tuple(inputs),
            layout=_layout(digest, every, inputs),
            slices=declared.slices,
            decide=declared.decide,
            model=declared.model,
            gate=declared.gate,
            retrain=declared.retrain,
            rollout=declared.rollout,
            tick_ms=declared.tick_ms,
            window_ms=declared.window_ms,
            retention_ms=declared.retention_ms,
            predictions=declared.predictions,
            digest=digest,
        )


def digest_of(
    streams: Sequence[Stream], question: Stream, views: Sequence[View], inputs: Sequence[View | Direct], slices: Sequence[str]
) -> str:
    """Twelve hexadecimal digits over all that decides a row and what is folded for it."""
    settings = (
        "name",
        "number",
        "topic",
        "id",
        "key",
        "time",
        "visible",
        "lateness_ms",
        "duplicates_ms",
        "duplicates_max",
        "pii",
        "broadcast",
    )
    described = {
        "streams": [{name: getattr(stream, name) for name in settings} | {"types": stream.types} for stream in streams],
        "question": question.name,
        "views": [
            {
                "name": view.name,
                "of": [stream.name for stream in view.of],
                "by": view.by,
                "broadcast": view.broadcast,
                "features": [asdict(one) for one in view.features],
            }
            for view in views
        ],
        "inputs": [{"view": value.name} if isinstance(value, View) else asdict(value) for value in inputs],
        "slices": slices,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def _layout(version: str, views: Sequence[View], inputs: Sequence[View | Direct]) -> RowLayout:
    columns = list(_columns(views, inputs))
    return RowLayout(version, tuple(name for name, _ in columns), tuple(view.name for view in views), tuple(view for _, view in columns))


def _columns(views: Sequence[View], inputs: Sequence[View | Direct]) -> Iterator[tuple[str, int]]:
    for value in inputs:
        if isinstance(value, View):
            yield from ((feature.name, views.index(value)) for feature in value.features)
        else:
            yield value.name, DIRECT


def _no_such_field(words: str, field: str, types: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(field, types, 1)
    hint = f'Did you mean "{near[0]}" ({types[near[0]]})?' if near else f"There are {_quoted(types)}."
    return f"{words} {hint}"


def _is_record(schema: Any) -> bool:
    fields = schema.get("fields") if isinstance(schema, dict) and schema.get("type") == "record" else None
    return bool(fields) and isinstance(fields, list) and all(isinstance(field, dict) and {"name", "type"} <= set(field) for field in fields)


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        return False
    return True

"""A published version of a message stays readable: by its own schema, and by every one after it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from driftline.contracts.avro import Codec
from driftline.contracts.messages import MESSAGES, schema, schema_folder, versions
from driftline.contracts.registry import incompatibilities
from driftline.errors import Invalid
from driftline.stream.batch import Varlen

PUBLISHED = [(message, version) for message in MESSAGES for version in versions(message)]


def sample(message: str, version: int) -> tuple[dict[str, Any], bytes]:
    """A record, and what was once written for it. Bytes are in hex."""
    written = json.loads((schema_folder() / "samples" / f"{message}.v{version}.json").read_text())
    octets = {field["name"] for field in schema(message, version)["fields"] if field["type"] in ("bytes", ["null", "bytes"])}
    record = {name: bytes.fromhex(value) if name in octets and value is not None else value for name, value in written["record"].items()}
    return record, bytes.fromhex(written["value"])


@pytest.mark.parametrize(("message", "version"), PUBLISHED)
def test_a_published_version_decodes_its_sample(message, version):
    """
    What was written when it was published is read, and written again the same.
    """
    record, value = sample(message, version)
    codec = Codec(schema(message, version))
    columns, bad = codec.decode(Varlen.of([value]))
    assert not bad.any()
    assert [value] == codec.encode(columns).tolist()
    assert [value] == codec.encode({name: [one] for name, one in record.items()}).tolist()


@pytest.mark.parametrize(("message", "version"), PUBLISHED)
def test_the_newest_version_reads_every_older_sample(message, version):
    """
    By Avro's rules of resolution, with fastavro.
    """
    _, value = sample(message, version)
    read = fastavro.schemaless_reader(
        io.BytesIO(value), fastavro.parse_schema(schema(message, version)), fastavro.parse_schema(schema(message))
    )
    assert [field["name"] for field in schema(message)["fields"]] == list(read)


@pytest.mark.parametrize(("message", "version"), [(message, version) for message, version in PUBLISHED if version > 1] or [("tick", 1)])
def test_a_version_reads_the_one_before_it(message, version):
    """
    Its predecessor's records can be read with it; the first has only itself.
    """
    assert incompatibilities(schema(message, version), schema(message, max(1, version - 1))) == []


def test_every_version_has_a_sample_and_every_sample_a_version():
    """
    Sixteen or more, none missing, none left behind.
    """
    assert len(PUBLISHED) >= 16
    samples: set[Path] = set((schema_folder() / "samples").iterdir())
    assert samples == {schema_folder() / "samples" / f"{message}.v{version}.json" for message, version in PUBLISHED}


def test_versions_are_numbered_from_one_without_gaps():
    """
    A version that vanished would take the old records with it.
    """
    assert all(list(versions(message)) == list(range(1, len(versions(message)) + 1)) for message in MESSAGES)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"name": "deployment", "type": "string"}, "reader type: string not compatible with writer type: int"),
        ({"name": "mood", "type": "string"}, "mood"),
    ],
)
def test_the_checker_refuses_a_version_that_cannot_read_the_last(field, words):
    """
    A field of another type, and a new one without a default.
    """
    old = schema("tick")
    new = old | {"fields": [one for one in old["fields"] if one["name"] != field["name"]] + [field]}
    assert words in " ".join(incompatibilities(new, old))


def test_the_checker_accepts_a_new_field_with_a_default():
    """
    So a message grows.
    """
    old = schema("tick")
    assert incompatibilities(old | {"fields": [*old["fields"], {"name": "mood", "type": "string", "default": ""}]}, old) == []


def test_the_checker_refuses_what_is_no_schema():
    """
    In words, not with an error of the package.
    """
    with pytest.raises(Invalid, match="no Avro schema"):
        incompatibilities({"type": "record", "name": "R"}, schema("tick"))

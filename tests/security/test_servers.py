"""
Kafka with SASL and TLS, a store with TLS and a user, a registry behind TLS: who has what it takes is served; who has not is told which
setting to look at, and nobody is told a secret.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from aiokafka.admin import NewTopic
from running import Site, until
from secured import Secured, TlsDoor, secret_file

from driftline.contracts.registry import Registry
from driftline.errors import DriftlineError, Fatal
from driftline.local.server import HOST
from driftline.stream.batch import Varlen
from driftline.stream.kafka import Outlet, Source, create_topics, describe
from driftline.stream.ledger import refuse_unsafe_store
from driftline.stream.store import Store


@pytest.fixture
def told(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> Secured:
    """This process has the settings."""
    for name, value in secured.environment.items():
        monkeypatch.setenv(name, value)
    return secured


@pytest.mark.parametrize("how", ["SCRAM-SHA-512", "PLAIN", "a certificate"])
async def test_records_go_there_and_back(told: Secured, monkeypatch: pytest.MonkeyPatch, how: str):
    """
    With a password by either mechanism, and with a certificate in place of a password.
    """
    kafka, topic = told.environment["DRIFTLINE_KAFKA"], f"t{uuid4().hex[:8]}"
    if how == "a certificate":
        kafka = with_certificate(told, monkeypatch)
    else:
        monkeypatch.setenv("DRIFTLINE_KAFKA_MECHANISM", how)
    await create_topics(kafka, [NewTopic(topic, 1, 1)])
    outlet, source = Outlet(kafka, "tests"), Source(kafka, topic, 0)
    await outlet.start()
    await outlet.put(topic, 0, Varlen.nulls(2), Varlen.of([b"one", b"two"]), np.arange(2), 0)
    await outlet.stop()
    await source.start()
    source.seek(0)
    polled = await source.poll(10, 10_000)
    await source.stop()
    assert polled is not None and polled.values.tolist() == [b"one", b"two"]


def with_certificate(told: Secured, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the listener that asks for one."""
    certificate, key = told.authority.issue(f"client-{uuid4().hex[:8]}")
    monkeypatch.setenv("DRIFTLINE_KAFKA_SECURITY", "ssl")
    monkeypatch.delenv("DRIFTLINE_KAFKA_USER")
    monkeypatch.delenv("DRIFTLINE_KAFKA_PASSWORD_FILE")
    monkeypatch.setenv("DRIFTLINE_KAFKA_CERT_FILE", str(certificate))
    monkeypatch.setenv("DRIFTLINE_KAFKA_KEY_FILE", str(key))
    return f"{HOST}:{told.broker.ssl_port}"


async def test_the_loop_runs_on_secured_servers(told: Secured, tmp_path: Path):
    """
    Intake, feature with its ledger and rollout with Faust: a payment becomes a row, a command is answered, status finds everything
    ready. No secret is in what they wrote, in a file of theirs, or in the list of processes.
    """
    site = Site(told.environment, tmp_path, PII_KEY=bytes(range(32)).hex())
    await site.create()
    services = ("intake", "feature", "rollout")
    with ExitStack() as running:
        pids = [running.enter_context(site.process(service)).pid for service in services]
        for service in services:
            await until(lambda service=service: site.is_ready(service))
        now = int(time.time() * 1000)
        payment = {"payment_id": "p1", "card": "c1", "holder": "h", "paid_at": now, "amount": 2.5}
        await site.put(site.payments, [json.dumps(payment).encode()])
        await until(lambda: has_row(site, "p1"))
        paused = await site.command("models", "pause", "-p", site.name, "--because", "a test", "--wait-s", "60")
        status = await site.command("status", site.name)
        where = json.loads((site.folder / "intake.json").read_text())["ops"]
        elsewhere = await site.command("status", site.name, "--ops", where, DRIFTLINE_RUN_DIR=str(tmp_path / "nothing"))
        seen = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids]
    assert paused.stdout.startswith("nothing: "), paused.stderr
    assert {line.split()[0] for line in status.stdout.splitlines() if line.split()[1:] == ["ready"]} == set(services), status.stderr
    assert elsewhere.returncode == 0 and "intake ready" in re.sub(" +", " ", elsewhere.stdout), elsewhere.stdout + elsewhere.stderr
    assert re.search(rf"{site.name}-intake +{site.payments} +1 +0", status.stdout), status.stdout
    seen += [site.said(), status.stdout + status.stderr, *(place.read_text() for place in tmp_path.rglob("*.json"))]
    assert [secret for secret in told.secrets if any(secret in one for one in seen)] == []


async def has_row(site: Site, question: str) -> bool:
    return any(one.get("id") == question and "row" in one for one in await site.records(site.topics.features))


KAFKA_FAULTS = {
    "a wrong password": ({"KAFKA_PASSWORD_FILE": "wrong"}, r"refuses the user driftline\. .*DRIFTLINE_KAFKA_PASSWORD"),
    "an unknown user": ({"KAFKA_USER": "nobody"}, r"refuses the user nobody\. .*DRIFTLINE_KAFKA_USER"),
    "a wrong authority": ({"KAFKA_CA_FILE": "stranger"}, r"not trusted: .*DRIFTLINE_KAFKA_CA_FILE"),
    "another mechanism": ({"KAFKA_MECHANISM": "SCRAM-SHA-256"}, r"does not take SCRAM-SHA-256\. .*DRIFTLINE_KAFKA_MECHANISM"),
    "no user": ({"KAFKA_USER": ""}, r"DRIFTLINE_KAFKA_USER is not set"),
    "no password": ({"KAFKA_PASSWORD_FILE": ""}, r"DRIFTLINE_KAFKA_PASSWORD is not set"),
    "a password that all can read": ({"KAFKA_PASSWORD_FILE": "open"}, r"DRIFTLINE_KAFKA_PASSWORD_FILE: .*chmod o-rwx"),
    "an authority that is not there": ({"KAFKA_CA_FILE": "none"}, r"DRIFTLINE_KAFKA_CA_FILE: .*No such file"),
    "no security": (
        {"KAFKA_SECURITY": "plaintext", "KAFKA_USER": "", "KAFKA_PASSWORD_FILE": "", "KAFKA_CA_FILE": ""},
        r"does not answer.*DRIFTLINE_KAFKA_SECURITY",
    ),
}


def changed(told: Secured, monkeypatch: pytest.MonkeyPatch, folder: Path, changes: dict[str, str]) -> list[str]:
    """Set them; words stand for files. Returns what nobody must be told."""
    wrong, opened = "wrong-" + uuid4().hex, folder / "open"
    opened.write_text(told.kafka_password)
    opened.chmod(0o644)
    files = {
        "wrong": secret_file(folder / "wrong", wrong),
        "open": str(opened),
        "stranger": str(told.stranger.ca_file),
        "none": str(folder / "none.pem"),
    }
    for name, value in changes.items():
        monkeypatch.setenv(f"DRIFTLINE_{name}", files.get(value, value))
    return [wrong, *told.secrets]


def chain(error: BaseException) -> str:
    """What a traceback would show, causes included."""
    causes = error.__cause__ or error.__context__
    return f"{error!r} {error}" + (chain(causes) if causes else "")


@pytest.mark.parametrize("fault", KAFKA_FAULTS)
async def test_who_is_not_let_in_by_kafka_is_told_which_setting(
    told: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
):
    """
    Whichever client it is: an admin client, a consumer, a producer. The secret is in no error, no cause of it, and no log.
    """
    changes, words = KAFKA_FAULTS[fault]
    hidden = changed(told, monkeypatch, tmp_path, changes)
    kafka = told.environment["DRIFTLINE_KAFKA"]
    with pytest.raises(DriftlineError, match=words) as described:
        await describe(kafka, ["anything"])
    outlet = Outlet(kafka, "tests")
    with pytest.raises(DriftlineError, match=words) as sent:
        await outlet.start()
    await outlet.stop()
    with pytest.raises(DriftlineError, match=words) as read:
        await started(kafka)
    told_all = [chain(one.value) for one in (described, sent, read)] + [caplog.text]
    assert [secret for secret in hidden if any(secret in one for one in told_all)] == []


async def started(kafka: str) -> None:
    source = Source(kafka, "anything", 0)
    try:
        await source.start()
    finally:
        await source.stop()


async def test_a_client_without_the_certificate_that_is_asked_for_is_told(told: Secured, monkeypatch: pytest.MonkeyPatch):
    """
    And one whose key everybody can read, before it connects.
    """
    kafka = with_certificate(told, monkeypatch)
    key = Path(os.environ["DRIFTLINE_KAFKA_KEY_FILE"])
    key.chmod(0o604)
    with pytest.raises(Fatal, match=r"DRIFTLINE_KAFKA_KEY_FILE: .*chmod o-rwx"):
        await describe(kafka, ["anything"])
    monkeypatch.delenv("DRIFTLINE_KAFKA_CERT_FILE")
    monkeypatch.delenv("DRIFTLINE_KAFKA_KEY_FILE")
    with pytest.raises(DriftlineError, match=r"DRIFTLINE_KAFKA_CERT_FILE"):
        await describe(kafka, ["anything"])


async def test_the_name_of_the_host_is_verified(told: Secured):
    """
    A certificate of the right authority for another name is that of somebody else.
    """
    pair = told.authority.issue("elsewhere", "elsewhere.example.org")
    with TlsDoor(told.store_port, *pair) as store, TlsDoor(told.broker.port, *pair) as kafka:
        with pytest.raises(Fatal, match=r"IP address mismatch.*DRIFTLINE_REDIS_CA_FILE"):
            await refuse_unsafe_store(f"rediss://{HOST}:{store.port}")
        with pytest.raises(Fatal, match=r"not trusted: IP address mismatch.*DRIFTLINE_KAFKA_CA_FILE"):
            await describe(f"{HOST}:{kafka.port}", ["anything"])


STORE_FAULTS = {
    "a wrong password": ({"REDIS_PASSWORD_FILE": "wrong"}, r"WRONGPASS.*DRIFTLINE_REDIS_PASSWORD"),
    "an unknown user": ({"REDIS_USER": "nobody"}, r"WRONGPASS.*DRIFTLINE_REDIS_USER"),
    "nobody": ({"REDIS_USER": "", "REDIS_PASSWORD_FILE": ""}, r"NOAUTH.*DRIFTLINE_REDIS_USER"),
    "a user without a password": ({"REDIS_PASSWORD_FILE": ""}, r"DRIFTLINE_REDIS_PASSWORD is not"),
    "a wrong authority": ({"REDIS_CA_FILE": "stranger"}, r"the store's certificate.*DRIFTLINE_REDIS_CA_FILE"),
    "a password that all can read": ({"REDIS_PASSWORD_FILE": "open"}, r"DRIFTLINE_REDIS_PASSWORD_FILE: .*chmod o-rwx"),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
async def test_who_is_not_let_in_by_the_store_is_told_which_setting(
    told: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
):
    """
    Before anything is read or written.
    """
    changes, words = STORE_FAULTS[fault]
    hidden = changed(told, monkeypatch, tmp_path, changes)
    with pytest.raises(Fatal, match=words) as refusal:
        await refuse_unsafe_store(told.environment["DRIFTLINE_REDIS"])
    assert [secret for secret in hidden if secret in chain(refusal.value) + caplog.text] == []


async def test_a_store_without_tls_is_not_asked_with_a_certificate(told: Secured):
    """
    Somebody believes that the connection is secure, and it would not be.
    """
    with pytest.raises(Fatal, match=r"DRIFTLINE_REDIS_CA_FILE is set, and DRIFTLINE_REDIS is redis://"):
        await refuse_unsafe_store(told.environment["DRIFTLINE_REDIS"].replace("rediss", "redis"))


async def test_the_user_of_the_store_may_do_what_driftline_asks_and_no_more(told: Secured):
    """
    The rights that docs/how-to/secure.md gives.
    """
    store = Store(told.environment["DRIFTLINE_REDIS"])
    await refuse_unsafe_store(told.environment["DRIFTLINE_REDIS"])
    with pytest.raises(DriftlineError, match="NOPERM"):
        await store.ask(("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"))
    await store.close()


def test_a_registry_that_is_not_trusted_is_not_asked(told: Secured, monkeypatch: pytest.MonkeyPatch):
    """
    At once, not after five tries; with the right authority it answers.
    """
    url = told.environment["DRIFTLINE_REGISTRY"]
    assert Registry(url).latest(f"none-{uuid4().hex}") is None
    monkeypatch.setenv("DRIFTLINE_REGISTRY_CA_FILE", str(told.stranger.ca_file))
    with pytest.raises(Fatal, match=r"not trusted.*DRIFTLINE_REGISTRY_CA_FILE"):
        Registry(url, pause=lambda _: pytest.fail("tried again")).latest("any")


@pytest.mark.parametrize("service", ["feature", "rollout"])
async def test_a_service_with_a_wrong_password_ends_and_says_why(told: Secured, tmp_path: Path, service: str):
    """
    With status 1, for a supervisor to see, and with the setting's name as the last line; it never tries the password again.
    """
    site = Site(told.environment, tmp_path)
    await site.create()
    wrong = secret_file(tmp_path / "wrong", "wrong-" + uuid4().hex)
    ended = await site.command("run", service, "-p", site.name, DRIFTLINE_KAFKA_PASSWORD_FILE=wrong)
    assert ended.returncode == 1
    assert "DRIFTLINE_KAFKA_PASSWORD" in ended.stderr.splitlines()[-1]
    assert Path(wrong).read_text().strip() not in ended.stderr + ended.stdout

"""Settings of access: what is wrong is refused by name before anything connects, and no secret is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from driftline import access
from driftline.access import Access, check
from driftline.errors import Fatal
from driftline.settings import read

SASL = {"KAFKA_SECURITY": "sasl_ssl", "KAFKA_USER": "ann", "KAFKA_PASSWORD": "s3cret"}
WRONG = {
    "of Kafka, not asked for": ({"KAFKA_USER": "ann"}, "DRIFTLINE_KAFKA_USER is set, and DRIFTLINE_KAFKA_SECURITY is plaintext"),
    "a password in clear": ({"KAFKA_PASSWORD": "s3cret"}, "DRIFTLINE_KAFKA_PASSWORD is set, and DRIFTLINE_KAFKA_SECURITY is plaintext"),
    "no user": (SASL | {"KAFKA_USER": ""}, "DRIFTLINE_KAFKA_USER is not set"),
    "no password": (SASL | {"KAFKA_PASSWORD": ""}, "DRIFTLINE_KAFKA_PASSWORD is not set"),
    "a word that is none": ({"KAFKA_SECURITY": "tls"}, "DRIFTLINE_KAFKA_SECURITY is wrong"),
    "a mechanism that is none": (SASL | {"KAFKA_MECHANISM": "SCRAM"}, "DRIFTLINE_KAFKA_MECHANISM is wrong"),
    "an authority for nothing": ({"KAFKA_CA_FILE": "ca.pem"}, "DRIFTLINE_KAFKA_CA_FILE is set, and DRIFTLINE_KAFKA_SECURITY is plaintext"),
    "a certificate without its key": ({"KAFKA_SECURITY": "ssl", "KAFKA_CERT_FILE": "c.pem"}, "DRIFTLINE_KAFKA_KEY_FILE is not"),
    "a key without its certificate": ({"REDIS_KEY_FILE": "k.pem"}, "DRIFTLINE_REDIS_CERT_FILE is not"),
    "an authority that is none": ({"KAFKA_SECURITY": "ssl", "KAFKA_CA_FILE": "text"}, "DRIFTLINE_KAFKA_CA_FILE: .*no certificates"),
    "a certificate that is none": (
        {"REDIS": "rediss://there", "REDIS_CERT_FILE": "text", "REDIS_KEY_FILE": "text"},
        "DRIFTLINE_REDIS_CERT_FILE, DRIFTLINE_REDIS_KEY_FILE: ",
    ),
    "two passwords": ({"REDIS": "redis://:s3cret@there", "REDIS_PASSWORD": "s3cret"}, "give one of them"),
    "an authority for a store in clear": ({"REDIS": "redis://there", "REDIS_CA_FILE": "text"}, "must be rediss://"),
    "half of a user": ({"REGISTRY_USER": "ann"}, "DRIFTLINE_REGISTRY_PASSWORD is not"),
    "a password in an address": ({"REGISTRY": "https://ann:s3cret@there"}, "DRIFTLINE_REGISTRY holds a user"),
    "a password over the network": (
        {"REGISTRY": "http://there", "REGISTRY_USER": "ann", "REGISTRY_PASSWORD": "s3cret"},
        "DRIFTLINE_REGISTRY_PASSWORD would go over the network in clear",
    ),
    "an authority for a registry in clear": ({"REGISTRY": "http://there", "REGISTRY_CA_FILE": "text"}, "DRIFTLINE_REGISTRY_CA_FILE is set"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """
    Also what is set and would not be used, because somebody believes that it protects.
    """
    monkeypatch.chdir(tmp_path)
    Path("text").touch(mode=0o600)
    Path("text").write_text("no certificate")
    settings, words = WRONG[fault]
    with pytest.raises(Fatal, match=words) as refusal:
        check({f"DRIFTLINE_{name}": value for name, value in settings.items()})
    assert "s3cret" not in f"{refusal.value!r}{refusal.value.__cause__!r}"


def test_nothing_set_is_nothing_asked() -> None:
    """
    As it was before there were such settings.
    """
    check({})
    how = access.kafka({})
    assert (how.security, how.context, how.mechanism) == ("PLAINTEXT", None, None)


def test_hosts_and_certificates_are_verified() -> None:
    """
    There is no setting that turns it off.
    """
    context = access.kafka({f"DRIFTLINE_{name}": value for name, value in SASL.items()}).context
    assert context is not None
    assert (context.check_hostname, context.verify_mode.name) == (True, "CERT_REQUIRED")


def test_what_is_printed_of_it_holds_no_secret() -> None:
    """
    A repr ends up in logs and in tracebacks.
    """
    given = {f"DRIFTLINE_{name}": value for name, value in (SASL | {"REDIS_PASSWORD": "s3cret"}).items()}
    assert "s3cret" not in f"{read(Access, given)!r}{access.kafka(given)!r}"


def test_a_secret_that_was_renewed_in_its_file_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    By the next client; no process has to be started again.
    """
    place = tmp_path / "password"
    place.touch(mode=0o600)
    place.write_text("first")
    for name, value in {**SASL, "KAFKA_PASSWORD": "", "KAFKA_PASSWORD_FILE": str(place)}.items():
        monkeypatch.setenv(f"DRIFTLINE_{name}", value)
    assert access.kafka_client("there:9092")["sasl_plain_password"] == "first"
    place.write_text("second")
    assert access.kafka_client("there:9092")["sasl_plain_password"] == "second"

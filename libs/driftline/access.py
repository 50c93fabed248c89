"""
How a process proves who it is, to Kafka, the store and the schema registry, and how it knows that they are who they should be. The only
module that knows an option of TLS or SASL: who makes a client asks here for what the client needs.

`check` refuses a wrong setting before a process connects. After that the settings are read again for each client that is made, so
a password or a certificate that was renewed in its file is used from the next connection on.
"""

from __future__ import annotations

import os
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from driftline.errors import Fatal
from driftline.settings import PREFIX, read, read_secret

AT_HOME = ("127.0.0.1", "localhost", "::1")


class Access(Struct, frozen=True):
    """Read from DRIFTLINE_<NAME>; passwords also from the file that DRIFTLINE_<NAME>_FILE names."""

    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_user: str = ""
    kafka_password: str = ""
    kafka_ca_file: str = ""
    kafka_cert_file: str = ""
    kafka_key_file: str = ""
    redis_user: str = ""
    redis_password: str = ""
    redis_ca_file: str = ""
    redis_cert_file: str = ""
    redis_key_file: str = ""
    registry_user: str = ""
    registry_password: str = ""
    registry_ca_file: str = ""

    def __post_init__(self) -> None:
        self._refuse_half("kafka_cert_file", "kafka_key_file")
        self._refuse_half("redis_cert_file", "redis_key_file")
        self._refuse_half("registry_user", "registry_password")
        if self.redis_user and not self.redis_password:
            raise ValueError("DRIFTLINE_REDIS_USER is set, and DRIFTLINE_REDIS_PASSWORD is not")
        asks, secure = self.kafka_security.startswith("sasl"), self.kafka_security.endswith("ssl")
        for name in ("kafka_user", "kafka_password"):
            self._refuse_unfit(name, asks, "sasl_ssl or sasl_plaintext")
        if secure:
            return
        for name in ("kafka_ca_file", "kafka_cert_file"):
            if getattr(self, name):
                raise ValueError(
                    f"{_variable(name)} is set, and DRIFTLINE_KAFKA_SECURITY is {self.kafka_security}: set it to ssl or sasl_ssl"
                )

    def _refuse_half(self, one: str, other: str) -> None:
        given, missing = (one, other) if getattr(self, one) else (other, one)
        if getattr(self, given) and not getattr(self, missing):
            raise ValueError(f"{_variable(given)} is set, and {_variable(missing)} is not")

    def _refuse_unfit(self, name: str, asked: bool, wanted: str) -> None:
        """A name or a password that would not be sent is a mistake too: somebody believes that it is."""
        if asked and not getattr(self, name):
            raise ValueError(f"{_variable(name)} is not set, and DRIFTLINE_KAFKA_SECURITY is {self.kafka_security}")
        if not asked and getattr(self, name):
            raise ValueError(f"{_variable(name)} is set, and DRIFTLINE_KAFKA_SECURITY is {self.kafka_security}: set it to {wanted}")

    def __repr__(self) -> str:
        return f"Access(kafka_security={self.kafka_security!r})"  # and no word more: a repr ends up in logs


@dataclass(frozen=True, slots=True)
class Kafka:
    """How to connect to Kafka: what is not asked for is None."""

    security: str  # as Kafka's clients name the protocol
    context: ssl.SSLContext | None
    mechanism: str | None
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"Kafka({self.security}, {self.user})"


def kafka(environment: Mapping[str, str] = os.environ) -> Kafka:
    """How this process connects to Kafka. Raises Fatal naming the variable that is wrong."""
    access = read(Access, environment)
    context = _context(access, "kafka") if access.kafka_security.endswith("ssl") else None
    if not access.kafka_security.startswith("sasl"):
        return Kafka(access.kafka_security.upper(), context, None, None, None)
    return Kafka(access.kafka_security.upper(), context, access.kafka_mechanism, access.kafka_user, access.kafka_password)


def kafka_client(address: str) -> dict[str, Any]:
    """What every client of aiokafka is made with. Raises Fatal."""
    how = kafka()
    options = {
        "bootstrap_servers": address,
        "security_protocol": how.security,
        "ssl_context": how.context,
        "sasl_mechanism": how.mechanism,
        "sasl_plain_username": how.user,
        "sasl_plain_password": how.password,
    }
    return {name: value for name, value in options.items() if value is not None}


def store(url: str, environment: Mapping[str, str] = os.environ) -> tuple[ssl.SSLContext | None, list[str]]:
    """The TLS of a connection to the store at `url`, None without; and the user and password that `url` does not name. Raises Fatal."""
    access, place = read(Access, environment), urlsplit(url)
    if access.redis_password and place.password:
        raise Fatal("DRIFTLINE_REDIS holds a password, and DRIFTLINE_REDIS_PASSWORD is set: give one of them")
    if place.username and access.redis_password:
        raise Fatal("DRIFTLINE_REDIS holds a user, and DRIFTLINE_REDIS_PASSWORD is set: give the user in DRIFTLINE_REDIS_USER")
    names = [name for name in (access.redis_user, access.redis_password) if name]
    if place.scheme == "rediss":
        return _context(access, "redis"), names
    for name in ("redis_ca_file", "redis_cert_file"):
        if getattr(access, name):
            raise Fatal(f"{_variable(name)} is set, and DRIFTLINE_REDIS is {place.scheme}://: for TLS it must be rediss://")
    return None, names


def registry(url: str, environment: Mapping[str, str] = os.environ) -> tuple[ssl.SSLContext | None, str]:
    """The TLS of a connection to the registry at `url`, None without; and the Authorization header, empty without. Raises Fatal."""
    access, place = read(Access, environment), urlsplit(url)
    if place.password or place.username:
        raise Fatal("DRIFTLINE_REGISTRY holds a user: give DRIFTLINE_REGISTRY_USER and DRIFTLINE_REGISTRY_PASSWORD instead")
    if place.scheme != "https" and access.registry_ca_file:
        raise Fatal("DRIFTLINE_REGISTRY_CA_FILE is set, and DRIFTLINE_REGISTRY is not https://")
    if place.scheme != "https" and access.registry_password and place.hostname not in AT_HOME:
        raise Fatal("DRIFTLINE_REGISTRY_PASSWORD would go over the network in clear: DRIFTLINE_REGISTRY must be https://")
    basic = b64encode(f"{access.registry_user}:{access.registry_password}".encode()).decode()
    return _context(access, "registry") if place.scheme == "https" else None, f"Basic {basic}" if access.registry_password else ""


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raises Fatal, naming the variable, when a setting is wrong or a file of one cannot be used. Connects to nothing."""
    kafka(environment)
    if url := environment.get("DRIFTLINE_REDIS"):  # who has no store may share the settings of those who do
        store(url, environment)
    registry(environment.get("DRIFTLINE_REGISTRY", ""), environment)


def _context(access: Access, server: str) -> ssl.SSLContext:
    """Certificates are verified, and so is the name of the host; by the system's authorities where no others are named."""
    authority = getattr(access, f"{server}_ca_file")
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise Fatal(f"{_variable(f'{server}_ca_file')}: {authority} holds no certificates that can be read: {_told(error)}") from error
    certificate, key = getattr(access, f"{server}_cert_file", ""), getattr(access, f"{server}_key_file", "")
    if certificate:
        read_secret(Path(key), _variable(f"{server}_key_file"))
        try:
            context.load_cert_chain(certificate, key, password=lambda: b"")  # or else OpenSSL asks a terminal
        except (OSError, ValueError) as error:
            variables = f"{_variable(f'{server}_cert_file')}, {_variable(f'{server}_key_file')}"
            raise Fatal(f"{variables}: no certificate with its key, unencrypted, in PEM: {_told(error)}") from error
    return context


def _told(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__


def _variable(name: str) -> str:
    return PREFIX + name.upper()

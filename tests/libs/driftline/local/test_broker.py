"""The embedded Kafka: its jars by digest, its identity, its log across a crash."""

from __future__ import annotations

import hashlib
import socket
import threading
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from driftline.errors import Fatal
from driftline.local.broker import Broker, Jar, describe_cluster, fetch_jars, pinned_jars


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def publish(repository: Path, artifact: str, content: bytes) -> Jar:
    """Put a jar into the repository; the pin that belongs to it."""
    jar = Jar("org.example", artifact, "1.0", hashlib.sha256(content).hexdigest())
    path = repository / jar.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return jar


def test_the_pinned_jars_are_one_kafka_with_whole_digests() -> None:
    """
    Every line of kafka.jars is a coordinate and a SHA-256, and all of Kafka's own are of one version.
    """
    jars = pinned_jars()
    assert len(jars) == 46
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {"4.3.1"}
    assert all(len(jar.sha256) == 64 and set(jar.sha256) <= set("0123456789abcdef") for jar in jars)
    assert len({jar.file for jar in jars}) == len(jars)


def test_jars_are_fetched_once(repository: Path, tmp_path: Path) -> None:
    """
    What is in the cache is not fetched again: the second time the repository may be gone.
    """
    jars = [publish(repository, "one", b"first"), publish(repository, "two", b"second")]
    assert fetch_jars(tmp_path / "cache", jars, repository.as_uri()) == 2
    assert fetch_jars(tmp_path / "cache", jars, "file:///nowhere") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == {"one-1.0.jar": b"first", "two-1.0.jar": b"second"}


def test_a_jar_with_another_digest_is_not_kept(repository: Path, tmp_path: Path) -> None:
    """
    A proxy's page or a tampered jar is refused by name, with both digests, and leaves nothing in the cache.
    """
    jar = publish(repository, "broken", b"what was pinned")
    (repository / jar.path).write_bytes(b"<html>please log in</html>")
    with pytest.raises(Fatal, match=r"broken-1\.0\.jar came with another digest .*got [0-9a-f]{4}\.\.\., want [0-9a-f]{4}"):
        fetch_jars(tmp_path / "cache", [jar], repository.as_uri())
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_jars_are_counted_and_the_others_kept(repository: Path, tmp_path: Path) -> None:
    """
    The error says how many are missing, which was the first and what helps; the next try fetches only the rest.
    """
    there, gone = publish(repository, "there", b"here"), Jar("org.example", "gone", "1.0", "0" * 64)
    with pytest.raises(Fatal, match=r"1 of 2 are missing \(first: gone-1\.0\.jar, .*no such file") as refusal:
        fetch_jars(tmp_path / "cache", [there, gone], repository.as_uri())
    assert "1 are kept" in str(refusal.value)
    assert "DRIFTLINE_KAFKA" in str(refusal.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["there-1.0.jar"]


def test_something_else_on_the_port_is_not_taken_for_a_broker() -> None:
    """
    A server that answers in another protocol is told from a Kafka.
    """
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="not a Kafka"):
            describe_cluster(other.getsockname()[1])
        thread.join()


async def test_what_was_acknowledged_is_there_after_a_crash(tmp_path: Path) -> None:
    """
    Killed with -9 and started again, the broker has the same address, the same identity and every acknowledged record.
    """
    with Broker(tmp_path / "kafka") as broker:
        address, cluster = broker.address, broker.cluster
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        await admin.create_topics([NewTopic("crash", 1, 1)])
        await admin.close()
        async with AIOKafkaProducer(bootstrap_servers=address, acks="all") as producer:
            for number in range(20):
                await producer.send_and_wait("crash", b"%d" % number)
        broker.kill()
        assert not broker.alive
        broker.restart()
        assert (broker.address, describe_cluster(broker.port)) == (address, (cluster, 1))
        async with AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
            consumer.assign([TopicPartition("crash", 0)])
            values = [(await consumer.getone()).value for _ in range(20)]
    assert values == [b"%d" % number for number in range(20)]
    assert not broker.alive


async def test_whoever_comes_by_the_detour_is_told_to_stay_on_it(tmp_path: Path) -> None:
    """
    A client that starts at the proxy learns the proxy's address as the broker's; one that starts at the broker does not.
    """
    proxy = 47_111  # nobody needs to listen there: it is only told
    with Broker(tmp_path / "kafka", detour=proxy) as broker:
        assert [await told_port(broker.detour_port), await told_port(broker.port)] == [proxy, broker.port]


async def told_port(port: int) -> int:
    """The port at which a broker says that it is."""
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}")
    try:
        await admin.start()
        (told,) = admin._client.cluster.brokers()
        return int(told.port)
    finally:
        await admin.close()

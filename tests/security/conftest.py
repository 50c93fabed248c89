"""The secured servers of these tests, one of each for the session, and what it takes to be let in."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parent))

from secured import RIGHTS, USER, Authority, Secured, SecuredBroker, TlsDoor, secret_file

from driftline.local.server import HOST
from driftline.local.stack import RegistryServer
from driftline.local.valkey import Valkey


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Kafka with SASL and TLS, Valkey with TLS and an ACL user alone, a registry behind TLS that has its schemas in that Kafka."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority.make(folder / "authority")
    kafka_password, redis_password = secrets.token_hex(12), secrets.token_hex(12)
    broker = SecuredBroker(folder / "kafka", authority, kafka_password)
    certificate, key = authority.issue("others", HOST, "localhost")
    with broker, Valkey(folder / "valkey") as valkey, RegistryServer(folder / "registry", broker.address) as schemas:
        with redis.Redis.from_url(valkey.url) as client:
            client.execute_command("ACL", "SETUSER", USER, "on", f">{redis_password}", "~*", *RIGHTS)
            client.execute_command("ACL", "SETUSER", "default", "off")
        with TlsDoor(valkey.port, certificate, key) as store, TlsDoor(schemas.port, certificate, key) as registry:
            settings = {
                "KAFKA": f"{HOST}:{broker.sasl_port}",
                "KAFKA_SECURITY": "sasl_ssl",
                "KAFKA_USER": USER,
                "KAFKA_PASSWORD_FILE": secret_file(folder / "kafka.secret", kafka_password),
                "KAFKA_CA_FILE": str(authority.ca_file),
                "REDIS": f"rediss://{HOST}:{store.port}/0",
                "REDIS_USER": USER,
                "REDIS_PASSWORD_FILE": secret_file(folder / "redis.secret", redis_password),
                "REDIS_CA_FILE": str(authority.ca_file),
                "REGISTRY": f"https://localhost:{registry.port}",
                "REGISTRY_CA_FILE": str(authority.ca_file),
            }
            environment = {f"DRIFTLINE_{name}": value for name, value in settings.items()}
            yield Secured(broker, valkey.port, authority, Authority.make(folder / "stranger"), kafka_password, redis_password, environment)

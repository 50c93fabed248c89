"""
Connects clients of Kafka, and says which setting is wrong when a broker turns them away: aiokafka only says that it could not bootstrap.
"""

from __future__ import annotations

import ssl
from typing import Protocol

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import IllegalSaslStateError, KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError

from driftline import access
from driftline.errors import DriftlineError, Fatal, Recoverable

PATIENCE_MS = 5_000
REFUSALS = (KafkaError, OSError, ValueError)  # a server that does not know the password either is a ValueError of SCRAM


class Client(Protocol):
    """Whatever aiokafka has that connects."""

    async def start(self) -> None: ...


async def connect(client: Client, kafka: str) -> None:
    """Start `client`. Raises Fatal when the broker and the settings do not fit, naming the setting; Recoverable otherwise."""
    try:
        await client.start()
    except REFUSALS as error:
        raise await _fault(kafka, error) from error


async def _fault(kafka: str, error: Exception) -> DriftlineError:
    for host, port, _ in collect_hosts(kafka, randomize=False):
        if refused := await _refusal(host, port):
            return Fatal(f"Kafka at {host}:{port}: {refused}")
    asked = "" if access.kafka().context is None else "; does it ask for a certificate, DRIFTLINE_KAFKA_CERT_FILE"
    right = f"Is it up, and are DRIFTLINE_KAFKA and DRIFTLINE_KAFKA_SECURITY right{asked}?"
    return Recoverable(f"Kafka at {kafka} does not answer: {error!r}. {right}")


async def _refusal(host: str, port: int) -> str:
    """What a connection of our own is told, as a setting to look at; empty where it comes about, or where nobody answers."""
    how = access.kafka()
    try:
        connection = await create_conn(
            host,
            port,
            request_timeout_ms=PATIENCE_MS,
            security_protocol=how.security,
            ssl_context=how.context,
            sasl_mechanism=how.mechanism,
            sasl_plain_username=how.user,
            sasl_plain_password=how.password,
        )
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted: {error.verify_message}. Look at DRIFTLINE_KAFKA_CA_FILE"
    except ssl.SSLError as error:
        return f"no TLS with it: {error.reason or type(error).__name__}. Look at DRIFTLINE_KAFKA_SECURITY and DRIFTLINE_KAFKA_CERT_FILE"
    except SaslAuthenticationFailed:
        return f"it refuses the user {how.user}. Look at DRIFTLINE_KAFKA_USER, DRIFTLINE_KAFKA_PASSWORD and DRIFTLINE_KAFKA_MECHANISM"
    except (UnsupportedSaslMechanismError, IllegalSaslStateError):
        return f"it does not take {how.mechanism}. Look at DRIFTLINE_KAFKA_MECHANISM and DRIFTLINE_KAFKA_SECURITY"
    except REFUSALS:
        return ""
    connection.close()
    return ""

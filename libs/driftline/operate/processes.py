"""
The processes of a pipeline, asked for what they say of themselves: those whose addresses are in the run dir of this machine, or those
that somebody named.
"""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from driftline.contracts.topics import LOOP, SERVICES
from driftline.local.progress import Sample, metrics_at, ops_told
from driftline.operate.addresses import Addresses

READY_TIMEOUT_S = 2.0
AT_ONCE = 8  # asked side by side, so that some that do not answer do not add up

T = TypeVar("T")


def read_services(addresses: Addresses) -> dict[str, str]:
    """
    Of each process: ready, or what keeps it from it, in words. By service; with its address behind where a service has several, and by
    the address alone where nobody says what it is. Of the run dir's, the gateway only where there is one. Where a name stands for several
    processes, a service of the loop that none of them is is told, too.
    """
    if addresses.ops:
        places = named(addresses.ops)
        said = dict(zip(places, _side_by_side(readiness_at, places), strict=True))
        count = Counter(service for service, _ in said.values())
        found = {_shown(service, place, count[service]): state for place, (service, state) in said.items()}
        missing = [service for service in LOOP if not count[service]] if len(places) > len(addresses.ops) else []
        return found | dict.fromkeys(missing, "no process of it answers")
    asked = [service for service in SERVICES if service in LOOP or (addresses.run_dir / f"{service}.json").exists()]
    return {service: _readiness_of(addresses.run_dir, service) for service in asked}


def _shown(service: str, place: str, processes: int) -> str:
    if not service:
        return place
    return service if processes == 1 else f"{service} ({urlsplit(place).netloc})"


def all_metrics(addresses: Addresses) -> list[list[Sample]]:
    """What each of them shows on /metrics now; nothing of those that do not answer."""
    if addresses.ops:
        places = named(addresses.ops)
    else:
        places = [ops for place in sorted(addresses.run_dir.glob("*.json")) if (ops := ops_told(addresses.run_dir, place.stem))]
    return _side_by_side(metrics_at, places)


def named(ops: Iterable[str]) -> list[str]:
    """The address of each process behind these: a name may stand for many, as that of a headless Service does for its pods."""
    return list(dict.fromkeys(place for one in ops for place in _behind(one)))


def _behind(ops: str) -> list[str]:
    parts = urlsplit(ops)
    if parts.scheme != "http" or parts.hostname is None:  # a certificate is made out to the name
        return [ops]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            told = socket.getaddrinfo(parts.hostname, parts.port or 80, family, socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # of a name that can be none
            continue
        found = sorted({str(place[0]) for *_, place in told})
        if len(found) == 1:
            return [ops]
        return [f"http://{f'[{ip}]' if ':' in ip else ip}:{parts.port or 80}{parts.path}" for ip in found]
    return [ops]  # whoever asks there is told what is wrong


def _side_by_side(ask: Callable[[str], T], places: list[str]) -> list[T]:
    with ThreadPoolExecutor(AT_ONCE) as asking:
        return list(asking.map(ask, places))


def _readiness_of(run_dir: Path, service: str) -> str:
    ops = ops_told(run_dir, service)
    return readiness_at(ops)[1] if ops else f"not started here ({run_dir / service}.json is missing)"


def readiness_at(ops: str) -> tuple[str, str]:
    """Which service the process at this address is (empty where it does not say), and its state in words."""
    try:
        try:
            with urllib.request.urlopen(f"{ops}/readyz", timeout=READY_TIMEOUT_S) as answer:
                return _said(answer.read())[0], "ready"
        except urllib.error.HTTPError as error:
            service, troubles = _said(error.read())
            return service, troubles or f"not ready (answered {error.code})"
    except (OSError, HTTPException) as error:
        return "", f"does not answer at {ops}: {error}"


def _said(body: bytes) -> tuple[str, str]:
    """The service and its troubles; nothing of what is no service of ours."""
    try:
        told = json.loads(body)
        return str(told["service"]), "; ".join(told["troubles"])
    except (ValueError, LookupError, TypeError):
        return "", ""

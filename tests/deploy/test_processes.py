"""The processes that docker-compose.yml and k8s/ start, compared with the code: images, commands, variables, places, ports."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import yaml
from described import IMAGE, ROOT, Started, compose, composed, scheduled, settings_of, troubles

from driftline.cli import SERVICES

FOLDERS = ("base", "overlays/laptop", "overlays/production", "jobs/topics", "jobs/rebuild")
STARTED = [*composed(compose()), *(one for folder in FOLDERS for one in scheduled(folder))]
OPS_PORT = IMAGE.environment["DRIFTLINE_OPS_PORT"]


@pytest.mark.parametrize("started", STARTED, ids=lambda started: started.where)
def test_a_process_fits_the_code_that_it_starts(started: Started) -> None:
    """
    Its image is a target, its command parses, its variables are those of the service, and every path has a volume and every volume a use.
    """
    assert troubles(started) == []


def test_every_service_is_started_once_in_each_way() -> None:
    """
    A new service has to be given its place in both; and no process was left out of the tests.
    """
    for found in (composed(compose()), *(scheduled(folder) for folder in FOLDERS[:3])):
        assert Counter(started.service for started in found if started.service) == Counter(SERVICES)
    assert len(STARTED) == 12 + 8 + 9 + 8 + 2


def gateway(**changed: object) -> Started:
    (found,) = (one for one in scheduled("base") if one.service == "gateway")
    return replace(found, **changed)


@pytest.mark.parametrize(
    ("started", "words"),
    [
        (gateway(image="console"), "no target console"),
        (gateway(command=("driftline", "runs", "gateway", "--pipeline", "flights")), "No such command"),
        (gateway(command=("driftline", "run", "door", "--pipeline", "flights")), "there is no service door"),
        (gateway(command=("driftline", "run", "gateway", "--pipelines", "flights")), "--pipelines"),
        (gateway(command=("driftline", "run", "gateway", "--pipeline", "fraud")), "there is no pipeline fraud"),
        (gateway(command=("driftlint", "run", "gateway", "--pipeline", "flights")), "no program driftlint"),
        (gateway(command=("python", "-m", "driftline.local.registry", "--kafka")), "SystemExit"),
        (gateway(environment=gateway().environment | {"DRIFTLINE_REPLICAS": "2"}), "DRIFTLINE_REPLICAS is not read by it"),
        (gateway(environment={"DRIFTLINE_KAFKA": "kafka:9092"}), "DRIFTLINE_REGISTRY is not set"),
        (gateway(environment=gateway().environment | {"DRIFTLINE_HTTP_PORT": "http"}), "DRIFTLINE_HTTP_PORT is wrong"),
        (gateway(mounts=("/tmp",)), "nothing is mounted for /etc/driftline/tokens/tokens"),
        (gateway(mounts=(*gateway().mounts, "/var/cache")), "nothing uses /var/cache"),
    ],
)
def test_a_process_that_does_not_fit_is_told(started: Started, words: str) -> None:
    """
    Each check is fed what it must refuse.
    """
    assert [one for one in troubles(started) if words in one]


def test_the_ports_are_those_that_the_processes_listen_on() -> None:
    """
    What is scraped, probed, published or called is what a setting says; the ops port comes with the image, for all.
    """
    services = compose()["services"]
    scraped = yaml.safe_load((ROOT / "monitoring/prometheus/compose.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    assert sorted(scraped) == sorted(f"{service}:{OPS_PORT}" for service in SERVICES)
    assert services["gateway"]["ports"] == [f"127.0.0.1:8080:{services['gateway']['environment']['DRIFTLINE_HTTP_PORT']}"]
    assert services["registry"]["command"][-1] == services["intake"]["environment"]["DRIFTLINE_REGISTRY"].rsplit(":", 1)[1]
    for started in STARTED:
        ports = {"DRIFTLINE_OPS_PORT", "DRIFTLINE_OPS_HOST"} & set(started.environment)
        assert not ports, f"{started.where} has another ops port than the image"
    assert all("ops_host" in settings_of(service).__struct_fields__ for service in SERVICES)

"""The console over HTTP: logging in, pages, commands from forms, and what no page of another site can do."""

from __future__ import annotations

import hashlib
import html
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

from driftline.contracts.messages import Release, Source, Summary, Writer
from driftline.stream.batch import Messages, Refused, Varlen
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.records import Polled
from services.gateway.console.routes import FILES, HERE
from tests.processes import until

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
DAY = 86_400_000
ROOT = Path(__file__).parents[4]


def logged_in(running: Any, role: str) -> Any:
    """A browser's client, with the session of the role's token."""
    client = running.client()
    answer = client.post("/console/log-in", data={"token": running.tokens[role]})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    return client


def word(client: Any, running: Any) -> str:
    """What a form of this session brings."""
    found = re.search(r'name="word" value="([^"]+)"', client.get(f"/{running.pipeline.name}/model").text)
    assert found is not None
    return found[1]


def test_a_visitor_is_sent_to_the_log_in_and_back(running: Any) -> None:
    """
    With the page that was wanted; a form of a fragment is told where to go instead.
    """
    client, path = running.client(), f"/{running.pipeline.name}/model"
    sent = client.get(path)
    assert (sent.status_code, sent.headers["Location"]) == (303, f"/console/log-in?next={path}")
    assert f'value="{path}"' in client.get(sent.headers["Location"]).text
    fragment = client.get(path, headers={"HX-Request": "true"})
    assert (fragment.status_code, fragment.headers["HX-Redirect"]) == (401, "/console/log-in")
    back = client.post("/console/log-in", data={"token": running.tokens["viewer"], "next": path})
    assert back.headers["Location"] == path
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("next", ["//evil.example/", "https://evil.example/", "/\\evil.example", "/console/log-in"])
def test_logging_in_leads_to_no_other_site(running: Any, next: str) -> None:
    """
    Whatever the address says.
    """
    answer = running.client().post("/console/log-in", data={"token": running.tokens["viewer"], "next": next})
    assert answer.headers["Location"] == "/"


def test_the_cookie_is_out_of_reach_and_the_token_is_nowhere(running: Any) -> None:
    """
    HttpOnly, SameSite=Strict, ends; and neither in the cookie, nor in any page, is the token.
    """
    client, token = running.client(), running.tokens["viewer"]
    answer = client.post("/console/log-in", data={"token": token})
    cookie = answer.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Max-Age=28800", "Path=/")) and token not in cookie
    pages = [client.get(path).text for path in ("/", f"/{running.pipeline.name}/model", "/console/log-in")]
    assert not any(token in page for page in pages)


def test_a_wrong_token_is_told_and_not_repeated(running: Any) -> None:
    """
    401, no cookie, and not what was typed.
    """
    answer = running.client().post("/console/log-in", data={"token": "dl_a-guess"})
    assert (answer.status_code, "Set-Cookie" in answer.headers, "dl_a-guess" in answer.text) == (401, False, False)


def test_who_logs_out_is_out_wherever_the_cookie_went(running: Any) -> None:
    """
    The session ends at the server.
    """
    client = logged_in(running, "viewer")
    ((name, taken),) = client.cookies.items()
    assert client.get("/").status_code == 200
    client.post("/console/log-out", headers=FORM)
    assert client.cookies.get(name) is None
    assert running.client().get("/", headers={"Cookie": f"{name}={taken}"}).status_code == 303


def test_gateways_of_one_host_do_not_end_one_anothers_sessions(running: Any, ground: Any) -> None:
    """
    A browser sends the cookies of a host to each of its ports.
    """
    client = logged_in(running, "viewer")
    with ground.gateway() as beside:
        assert client.get(f"{beside.url}/").status_code == 303
        client.post(f"{beside.url}/console/log-in", data={"token": beside.tokens["viewer"]})
        assert [client.get(f"{one.url}/").status_code for one in (beside, running)] == [200, 200]
        client.post(f"{beside.url}/console/log-out", headers=FORM)
        assert [client.get(f"{one.url}/").status_code for one in (beside, running)] == [303, 200]


def test_a_browsers_session_is_for_pages_alone(running: Any) -> None:
    """
    The API never reads the cookie, and pages never read the bearer's token.
    """
    client = logged_in(running, "operator")
    assert client.get("/v1/pipelines").status_code == 401
    assert client.post(running.path("models/pause"), json={"reason": "because"}).status_code == 401
    assert running.client("operator").get("/").status_code == 303


def test_every_page_says_what_may_run_in_it(running: Any) -> None:
    """
    Our own files alone: no script and no style is in the page itself, and no other site may frame it.
    """
    client = logged_in(running, "viewer")
    pages = ["model", "quality", "events", "events/nobody", "dead-letters", "features"]
    for path in ("/", *(f"/{running.pipeline.name}/{page}" for page in pages), "/console/log-in", "/nothing/model"):
        answer = client.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and answer.headers["Cache-Control"] == "no-store"
        assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:|https?://", answer.text) == []


def test_what_a_page_needs_is_served_and_nothing_else(running: Any) -> None:
    """
    A closed list, without a log-in, kept by browsers under an address that changes with them.
    """
    client = running.client()
    wanted = re.findall(r'"(/console/files/[^"]+)"', client.get("/console/log-in").text)
    assert {path.rsplit("/", 1)[1] for path in wanted} == set(FILES)
    for path in wanted:
        answer = client.get(path)
        assert (answer.status_code, "immutable" in answer.headers["Cache-Control"]) == (200, True)
    for name in ("VENDORED.md", "..%2Froutes.py", "routes.py"):
        assert client.get(f"/console/files/x/{name}").status_code in (303, 404)


def test_files_of_others_are_what_their_note_says() -> None:
    """
    Name, version, licence and checksum of each; none is there that is not noted.
    """
    noted = dict(re.findall(r"^\| `(\S+)` \| .* \| `([0-9a-f]{64})` \|$", (HERE / "static" / "VENDORED.md").read_text(), re.MULTILINE))
    assert {name: hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest() for name in noted} == noted
    assert set(FILES) - set(noted) == {"console.css", "console.js", "theme.js", "icon.svg"}


def test_templates_and_files_are_in_the_package(tmp_path: Path) -> None:
    """
    Whoever installs driftline from a wheel has them too.
    """
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {path.relative_to(ROOT).as_posix() for folder in ("templates", "static") for path in (HERE / folder).iterdir()}
    assert len(here) > 10 and here <= names


def test_the_loop_is_drawn_with_what_is_wrong(running: Any, rollout: dict[str, str]) -> None:
    """
    The rollout is the only service here, so the page says that others are not started, and Kafka's lags are on the arrows.
    """
    page = logged_in(running, "viewer").get("/").text
    assert page.count('<svg class="loop') == 2
    assert "intake: not started here" in page and 'class="node wrong"' in page and 'class="node ready"' in page


def test_the_search_leads_to_the_event(running: Any) -> None:
    """
    Whatever its id is made of; one that nobody has is told, and may be searched again.
    """
    client, name = logged_in(running, "viewer"), running.pipeline.name
    sent = client.get(f"/{name}/events", params={"id": " a/b?c "})
    assert (sent.status_code, sent.headers["Location"]) == (303, f"/{name}/events/a%2Fb%3Fc")
    missing = client.get(sent.headers["Location"])
    assert missing.status_code == 404
    assert 'value="a/b?c"' in missing.text and "No event on the log has this id" in missing.text


def test_an_event_is_shown_with_where_it_lies_and_without_what_its_sender_sent(running: Any) -> None:
    """
    Coordinates and the time of writing, from the log.
    """
    numbers = {"source": 16, "offset": 2, "index": 0, "event_offset": -1, "time": DAY, "visible": DAY}
    columns = {name: np.array([value], np.int64) for name, value in numbers.items()} | {"home": np.array([True])}
    trace = f"00-{'a' * 32}-{'b' * 16}-00"
    texts = {name: Varlen.of([value]) for name, value in {"id": "e-page", "key": "a-1", "body": "the-body", "traceparent": trace}.items()}
    running.send(Writer.INTAKE, Messages("events", "event", None, columns | texts, np.array([1]), to=1))
    page = logged_in(running, "viewer").get(f"/{running.pipeline.name}/events/e-page").text
    assert re.search(rf"<code>{running.topics.events.name}\[1\]@\d+</code>", page) and f"{running.pipeline.question.topic}[0]@2" in page
    assert f"Trace <code>{'a' * 32}</code>" in page
    assert "1970-01-02 00:00:00" in page and "+0 ms" in page and "the-body" not in page


def test_distributions_come_from_what_drift_counted(running: Any, rollout: dict[str, str]) -> None:
    """
    Rows of the champion by bin beside those of training, and its matured answers by score; a copy of a summary counts once.
    """
    digest = rollout["m-1"]
    window = {name: [60, 30, 10] for name in ("asked_1h", "amount_1h")} | {"amount": [100, 0, 0]}
    answers = {"inputs": {digest: {"rows": 100, "bins": window}}}
    quality = {"role": "champion", "model": "m-1", "digest": digest, "rows": 40, "positives": 10}
    cohort = {"models": {f"champion|{digest}": quality | {"positive_bins": {"220": 10}, "negative_bins": {"220": 30}}}}
    for _ in range(2):
        running.put(Writer.DRIFT_JOURNAL, "summaries", Summary("answers", DAY, 2 * DAY, answers), source=Source.JOURNAL)
        running.put(Writer.DRIFT_EXAMPLES, "summaries", Summary("examples", DAY, 2 * DAY, cohort), source=Source.EXAMPLES)
    client, name = logged_in(running, "viewer"), running.pipeline.name
    features = until(lambda: client.get(f"/{name}/features").text, lambda page: "100 rows" in page)
    assert "60.0 % now" in features and "number of asked, over 1 hour, for each account." in features
    page = until(lambda: client.get(f"/{name}/quality").text, lambda page: "25.0 %" in page)
    assert '<td class="n">40</td>' in page


def test_refused_records_are_shown_by_reason_without_what_they_held(running: Any) -> None:
    """
    With what it means, and the command that sends them again.
    """
    letters = DeadLetters(running.pipeline.name, "intake", Source.UPSTREAM, 100)
    topic = running.pipeline.question.topic
    polled = Polled.of([7], [b"k"], [b"the-payload"], [1])
    running.send(Writer.INTAKE, *letters.of(topic, 0, polled, [Refused(7, "contract", '"amount" is missing')]))
    client, path = logged_in(running, "viewer"), f"/{running.pipeline.name}/dead-letters"
    page = until(lambda: client.get(path).text, lambda page: f"{topic}[0]@7" in page)
    assert f"replay --topic {topic} --reason contract" in page and "&#34;amount&#34; is missing" in page
    assert "the-payload" not in page


def test_a_part_is_sent_again_when_something_in_it_has_changed(running: Any, rollout: dict[str, str]) -> None:
    """
    And alone; otherwise 204, which changes nothing in the browser.
    """
    client, path = logged_in(running, "viewer"), f"/{running.pipeline.name}/model"
    part = client.get(path, params={"part": "past"})
    assert part.text.startswith('<div id="part-past"') and "<html" not in part.text
    seen = re.search(r'"seen": "([0-9a-f]+)"', html.unescape(part.text))
    assert seen is not None
    assert client.get(path, params={"part": "past", "seen": seen[1]}).status_code == 204
    assert client.get(path, params={"part": "past", "seen": "other"}).status_code == 200


def test_a_form_without_its_sessions_word_commands_nothing(running: Any, rollout: dict[str, str]) -> None:
    """
    Nor does one with the word of another session, nor JSON, nor one without a reason; a viewer may not at all.
    """
    operator, viewer, path = logged_in(running, "operator"), logged_in(running, "viewer"), f"/{running.pipeline.name}/model/pause"
    good = {"word": word(operator, running), "reason": "because"}
    before = running.client("viewer").get(running.path("deployments")).json()["now"]
    refused = [
        operator.post(path, data={"reason": "because"}),
        operator.post(path, data=good | {"word": word(viewer, running)}),
        operator.post(path, json=good),
        operator.post(path, data=good | {"reason": "  "}),
        viewer.post(path, data={"word": word(viewer, running), "reason": "because"}),
        running.client().post(path, data=good),
    ]
    assert [one.status_code for one in refused] == [403, 403, 415, 422, 403, 303]
    assert running.client("viewer").get(running.path("deployments")).json()["now"] == before


def test_a_form_of_another_site_logs_nobody_in_or_out(running: Any) -> None:
    """
    A browser says where a form comes from.
    """
    client = running.client()
    for path in ("/console/log-in", "/console/log-out"):
        answer = client.post(path, data={"token": running.tokens["viewer"]}, headers={"Origin": "https://evil.example"})
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)


def test_a_command_of_a_form_is_published_with_the_name_of_its_session(running: Any, rollout: dict[str, str]) -> None:
    """
    As one over /v1 is, and the page that follows says what became of it.
    """
    client = logged_in(running, "operator")
    command = {"word": word(client, running), "reason": "a look at the console"}
    for path, words in (("pause", "pause is done"), ("resume", "resume is done")):
        sent = client.post(f"/{running.pipeline.name}/model/{path}", data=command)
        assert sent.status_code == 303
        assert words in client.get(sent.headers["Location"]).text
    moves = running.client("viewer").get(running.path("deployments")).json()["moves"]
    assert [one["move"] for one in moves[:2]] == ["resumed", "paused"]
    assert "the-operator: a look at the console" in moves[0]["reason"]


def test_what_a_message_says_is_text_in_the_page(running: Any, rollout: dict[str, str]) -> None:
    """
    A reason that looks like HTML stays a reason.
    """
    marked = "<script>alert(1)</script>"
    release = Release(
        "m-x", "e" * 64, "refused", marked, False, 1, "operator", marked, marked, {"checks": [{"name": marked, "detail": marked}]}
    )
    running.put(Writer.TRAINER, "control", release, source=Source.RETRAIN)
    client, path = logged_in(running, "viewer"), f"/{running.pipeline.name}/model"
    page = until(lambda: client.get(path).text, lambda page: "&lt;script&gt;" in page)
    assert marked not in page


def test_an_open_gateway_needs_no_log_in_and_takes_no_form_of_another_site(ground: Any) -> None:
    """
    On loopback alone; by the browser's word about where a form comes from, and by the word in the form.
    """
    with ground.gateway(tokens_file="", gateway_open="loopback") as opened:
        client, path = opened.client(), f"/{opened.pipeline.name}/model/pause"
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
        good = {"word": word(client, opened), "reason": ""}
        assert client.post(path, data=good | {"word": "guess"}).status_code == 403
        assert client.post(path, data=good, headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.post(path, data=good, headers={"Origin": opened.url}).status_code == 422

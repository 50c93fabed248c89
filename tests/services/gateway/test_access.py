"""Who may do what: every cell of the table of routes by roles, and what keeps the gateway from starting."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import Response

from driftline.clock import ManualClock
from driftline.errors import Fatal, Invalid
from driftline.operate.tokens import GIVEN, Holder, Role, Tokens, digest_of, load_tokens, new_token
from services.gateway.access import ROLES, Guarded, Rates, refuse_unguarded
from services.gateway.app import Settings, admitted

# What each operation asks for, written a second time, as the documentation tells it: a change has to be made in both places.
MAY = {
    "viewer": {
        "get_prediction",
        "list_pipelines",
        "get_status",
        "get_event",
        "get_features",
        "list_dead_letters",
        "list_models",
        "get_model",
        "list_deployments",
        "list_reports",
        "list_retrains",
        "follow",
        "oip_model",
        "oip_model_version",
        "oip_model_ready",
        "oip_model_version_ready",
    },
    "scorer": {"score", "score_batch", "oip_infer", "oip_infer_version"},
    "operator": {"pause_rollout", "resume_rollout", "roll_back_model", "retrain"},
    "approver": {"approve_model", "promote_model"},
}
OPEN = {"oip_server", "oip_server_live", "oip_server_ready", "openapi"}
# Pages, which a browser's session opens: method and path of each.
PAGES = {
    "page_loop": ("get", "/"),
    "page_model": ("get", "/{pipeline}/model"),
    "page_quality": ("get", "/{pipeline}/quality"),
    "page_events": ("get", "/{pipeline}/events"),
    "page_event": ("get", "/{pipeline}/events/nobody"),
    "page_dead_letters": ("get", "/{pipeline}/dead-letters"),
    "page_features": ("get", "/{pipeline}/features"),
    "page_approve_model": ("post", "/{pipeline}/model/approve"),
    "page_promote_model": ("post", "/{pipeline}/model/promote"),
    "page_pause_rollout": ("post", "/{pipeline}/model/pause"),
    "page_resume_rollout": ("post", "/{pipeline}/model/resume"),
    "page_roll_back_model": ("post", "/{pipeline}/model/rollback"),
    "page_log_in": ("get", "/console/log-in"),
    "log_in": ("post", "/console/log-in"),
    "log_out": ("post", "/console/log-out"),
    "console_file": ("get", "/console/files/x/console.css"),
}
PAGES_MAY = {
    "viewer": {"page_loop", "page_model", "page_quality", "page_events", "page_event", "page_dead_letters", "page_features"},
    "scorer": set(),
    "operator": {"page_pause_rollout", "page_resume_rollout", "page_roll_back_model"},
    "approver": {"page_approve_model", "page_promote_model"},
}
PAGES_OPEN = {"page_log_in", "log_in", "log_out", "console_file"}
BODIES = {"score": {}, "score_batch": [{}], "oip_infer": {}, "oip_infer_version": {}}
OPERATIONS = 30


def operations(running: Any) -> list[tuple[str, str, str]]:
    """Operation, method and a path for each route of the app, from its own document."""
    document = running.client().get("/openapi.json").json()
    values = {
        "pipeline": running.pipeline.name,
        "id": "nobody",
        "name": "no-model",
        "model": "no-model",
        "version": "1",
        "view": "recent",
        "key": "a",
    }
    found = [
        (operation["operationId"], method, path.format(**values))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return [*found, ("openapi", "get", "/openapi.json")]


def asked(client: Any, operation: str, method: str, path: str) -> int:
    """The status of a request that is good enough to pass the guard, and changes nothing behind it."""
    body = {"json": BODIES.get(operation, {"reason": ""})} if method == "post" else {}
    status: int = client.request(method, path, params={"for_s": 0} if operation == "follow" else {}, **body).status_code
    return status


@pytest.mark.parametrize("role", [None, *(role.value for role in GIVEN)])
def test_each_role_may_do_exactly_what_the_table_says(running: Any, role: str | None) -> None:
    """
    Every operation with every role, and with no token at all: passed on, or 401 and 403, as the table says and no other way.
    """
    found = operations(running)
    assert len(found) == OPERATIONS
    client = running.client(role)
    passed = {operation for operation, method, path in found if asked(client, operation, method, path) not in (401, 403)}
    wanted = OPEN if role is None else OPEN | MAY["viewer"] | MAY[role]
    assert passed == wanted


def opened(client: Any, running: Any, operation: str, word: str) -> bool:
    """Whether the guard lets a browser through to a page or a form; a form is good enough to be read, and commands nothing."""
    method, path = PAGES[operation]
    form = {"data": {"word": word, "reason": ""}} if method == "post" else {}
    answer = client.request(method, path.format(pipeline=running.pipeline.name), **form)
    return operation in ("log_in", "log_out") or answer.status_code in (200, 404, 422)


@pytest.mark.parametrize("role", [None, *(role.value for role in GIVEN)])
def test_each_role_may_open_exactly_the_pages_that_the_table_says(running: Any, role: str | None) -> None:
    """
    Every page and every form with a session of every role, and without one: let through, or refused, as the table says.
    """
    client, word = running.client(), ""
    if role is not None:
        client.post("/console/log-in", data={"token": running.tokens[role]})
        found = re.search(r'name="word" value="([^"]+)"', client.get(f"/{running.pipeline.name}/model").text)
        word = found[1] if found else ""
    order = sorted(PAGES, key=lambda operation: operation in ("log_in", "log_out"))
    passed = {operation for operation in order if opened(client, running, operation, word)}
    assert passed == (PAGES_OPEN if role is None else PAGES_OPEN | PAGES_MAY["viewer"] | PAGES_MAY[role])


def test_the_table_of_the_code_is_the_table_of_the_test() -> None:
    """
    One role for each operation, and no operation without.
    """
    told = {name: role for role, names in MAY.items() for name in names} | dict.fromkeys(OPEN, "anyone")
    pages = {name: role for role, names in PAGES_MAY.items() for name in names} | dict.fromkeys(PAGES_OPEN, "anyone")
    assert {name: role.value for name, role in ROLES.items()} == told | pages
    assert (len(told), set(pages)) == (OPERATIONS, set(PAGES))


def test_without_a_token_and_without_the_role_the_answer_says_what_is_needed(running: Any) -> None:
    """
    401 with the scheme, 403 with the role; neither with what was brought.
    """
    nobody = running.client().get("/v1/pipelines")
    assert (nobody.status_code, nobody.headers["WWW-Authenticate"]) == (401, "Bearer")
    wrong = running.client().get("/v1/pipelines", headers={"Authorization": "Bearer dl_secret-guess"})
    assert (wrong.status_code, "secret-guess" in wrong.text) == (401, False)
    viewer = running.client("viewer").post(running.path("retrain"), json={"reason": "because"})
    assert (viewer.status_code, viewer.json()["type"]) == (403, "urn:driftline:problem:forbidden")
    assert "operator" in viewer.json()["detail"]


def test_a_route_without_a_role_keeps_the_app_from_starting() -> None:
    """
    Where it is declared, and where somebody goes around the declaration.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.route_class = Guarded

    async def everything() -> Response:
        return Response()

    with pytest.raises(Fatal, match="no role"):
        app.get("/secrets", operation_id="secrets")(everything)
    app.add_route("/secrets", everything)  # type: ignore[arg-type]  # as a stranger might
    with pytest.raises(Fatal, match="/secrets are not guarded"):
        refuse_unguarded(app)


def test_a_token_is_kept_as_its_digest_and_found_by_itself(tmp_path: Path) -> None:
    """
    The line holds no token, and another token is nobody's.
    """
    token, line = new_token("ann@example.org", ["operator", "scorer"])
    (tmp_path / "tokens").touch(mode=0o640)
    (tmp_path / "tokens").write_text(f"# who may do what\n{line}  # Ann\n\n")
    tokens = load_tokens(tmp_path / "tokens")
    assert token not in line
    assert tokens.holder(token) == Holder("ann@example.org", frozenset({Role.SCORER, Role.OPERATOR}))
    assert tokens.holder(token[:-1]) is tokens.holder("") is tokens.holder(digest_of(token)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds 0 tokens"),
        ("ann viewer dl_the-token-itself", "line 1 of"),
        (f"ann king {'0' * 64}", "unknown roles"),
        (f"ann viewer {'0' * 64}\nann scorer {'1' * 64}", "names ann twice"),
    ],
)
def test_a_wrong_tokens_file_is_refused_without_repeating_it(tmp_path: Path, text: str, words: str) -> None:
    """
    Somebody may have put the token itself there.
    """
    (tmp_path / "tokens").touch(mode=0o600)
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(Fatal, match=words) as refusal:
        load_tokens(tmp_path / "tokens")
    assert "the-token-itself" not in str(refusal.value)


def test_a_tokens_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    """
    And one that is not there; the variable is named.
    """
    (tmp_path / "tokens").write_text(new_token("ann", ["viewer"])[1])
    (tmp_path / "tokens").chmod(0o644)
    for place, words in ((tmp_path / "tokens", "everybody"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(Fatal, match=f"DRIFTLINE_TOKENS_FILE.*{words}"):
            load_tokens(place)


def test_a_token_has_a_name_and_a_role_that_there_is() -> None:
    """
    Told with what there is.
    """
    for name, roles in (("", ["viewer"]), ("a b", ["viewer"]), ("ann", []), ("ann", ["king"]), ("ann", ["anyone"])):
        with pytest.raises(Invalid):
            new_token(name, roles)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "DRIFTLINE_TOKENS_FILE is not set"),
        ({"gateway_open": "loopback", "http_host": "0.0.0.0"}, "DRIFTLINE_HTTP_HOST"),
        ({"gateway_open": "loopback", "http_host": "example.org"}, "DRIFTLINE_HTTP_HOST"),
    ],
)
def test_without_tokens_it_starts_on_loopback_alone_and_only_when_told_so(given: dict[str, str], words: str) -> None:
    """
    Deny by default.
    """
    with pytest.raises(Fatal, match=words):
        admitted(Settings(pipeline="p", registry="r", **given))  # type: ignore[arg-type]  # as the environment has them
    assert admitted(Settings(pipeline="p", registry="r", gateway_open="loopback")) is None


def test_an_open_gateway_answers_this_machine_and_no_page_of_another_site(ground: Any) -> None:
    """
    A page that is open in a browser here could ask too: its origin tells, and so does another name for this machine.
    """
    with ground.gateway(tokens_file="", gateway_open="loopback") as opened:
        client = opened.client()
        assert client.get("/v1/pipelines").status_code == 200
        assert client.get("/v1/pipelines", headers={"Origin": opened.url}).status_code == 200
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example:80"}, {"Origin": "null"}):
            assert client.get("/v1/pipelines", headers=headers).status_code == 403


def test_no_token_and_no_event_is_in_the_log(running: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """
    Whatever goes wrong.
    """
    marked = "marked-" + "x" * 20
    said = io.StringIO()
    with redirect_stderr(said):
        client = running.client("scorer")
        client.post(running.path("score"), json=running.event(account=marked, amount=marked))
        client.post(running.path("score"), content=b"{" + marked.encode())
        client.get(running.path(f"predictions/{marked}"))
        client.get("/v1/pipelines", headers={"Authorization": f"Bearer {marked}"})
        client.post("/v2/models/none/infer", json={"inputs": [{"name": marked}]})
    told = capfd.readouterr()
    assert [text for text in (said.getvalue(), told.out, told.err) if marked in text or running.tokens["scorer"] in text] == []


def test_a_bucket_fills_with_time() -> None:
    """
    Twice the rate at once, then the rate; what was refused took nothing.
    """
    clock = ManualClock()
    rates = Rates(10.0, clock)
    assert [rates.take("ann", 10), rates.take("ann", 10)] == [0.0, 0.0]
    assert rates.take("ann") == pytest.approx(0.1)
    assert rates.take("bob") == 0.0
    clock.advance(1_000)
    assert [rates.take("ann", 10), rates.take("ann") > 0] == [0.0, True]


def test_tokens_are_made_by_the_command_line() -> None:
    """
    The token goes to standard error, the line, which may go into the file, to standard output.
    """
    from typer.testing import CliRunner

    from driftline.cli import app

    done = CliRunner().invoke(app, ["tokens", "new", "ann", "--role", "viewer", "--role", "approver"])
    token = done.stderr.split()[-1]
    assert done.exit_code == 0
    assert done.stdout == f"ann viewer,approver {digest_of(token)}\n"
    assert Tokens([(digest_of(token), Holder("ann", frozenset({Role.VIEWER})))]).holder(token) is not None
    assert json.dumps(done.stdout).count(token) == 0

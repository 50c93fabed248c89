"""
The console in a real browser: approve, promote and roll back by keyboard and by click, and what a phone and a dark room see.

It speaks the WebDriver protocol to chromedriver itself, so nothing has to be installed for it but the browser; where there is none it
is skipped, for CI and most users have none.
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

PATIENCE_S = 30.0
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the protocol gives to a reference
ENTER = "\ue007"
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")


class Browser:
    """One window of a browser, driven over HTTP."""

    def __init__(self, driver: str, profile: Path) -> None:
        self._client = httpx2.Client(base_url=driver, timeout=PATIENCE_S, trust_env=False)
        chrome = {"binary": CHROMIUM, "args": [*SWITCHES, f"--user-data-dir={profile}"]}
        asked = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": chrome}}}
        self._session = f"/session/{self._call('POST', '/session', asked)['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._client.request(method, path, **({"json": body} if method == "POST" else {}))
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *given: Any) -> Any:
        """What a script in the page returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": given})

    def _on(self, selector: str, action: str, body: Any) -> None:
        """Do something with an element; once more where the page has put another in its place meanwhile."""
        for last in (False, True):
            found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
            try:
                self._call("POST", f"{self._session}/element/{found[ELEMENT]}/{action}", body)
                return
            except AssertionError as error:
                if last or "stale element" not in str(error):
                    raise

    def click(self, selector: str) -> None:
        """As a mouse does."""
        self._on(selector, "click", {})

    def type(self, selector: str, text: str) -> None:
        """As a keyboard does."""
        self._on(selector, "value", {"text": text})

    def text(self, selector: str) -> str:
        """What is to be read there; nothing while it is not there."""
        found: str = self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return found

    def resize(self, width: int, height: int) -> None:
        """The window, in pixels; narrower than browsers let a window be, as a phone is."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._command("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Whether the system is light or dark."""
        self._command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def _command(self, name: str, parameters: Any) -> None:
        self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def screenshot(self) -> bytes:
        """A picture of what is to be seen, as PNG."""
        return base64.b64decode(self._call("GET", f"{self._session}/screenshot"))

    def errors(self) -> list[str]:
        """What the page said to the console of the browser that is an error: a refused script or style is among it."""
        logged = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [one["message"] for one in logged if one["level"] == "SEVERE"]

    def close(self) -> None:
        """End it."""
        self._call("DELETE", self._session)
        self._client.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser of its own; skipped, with the reason, where there is none."""
    # A browser is a program of the system, of 300 MB, that no Python package brings. Where it is missing, test_pages.py gives
    # commands by the same forms and sees what became of them; what remains untested then is our script and the layout.
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("this needs chromium and chromedriver on the PATH, which no Python package brings")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("browser")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([DRIVER, f"--port={port}", "--allowed-ips=127.0.0.1"], stdout=log, stderr=log)
    try:
        until(lambda: answers(port), (folder / "log").read_text)
        browser = Browser(f"http://127.0.0.1:{port}", folder / "profile")
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


def until(holds: Callable[[], bool], told: Callable[[], Any]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


@pytest.fixture
def moving(
    makers: Any, kafka: str, redis_url: str, registry_url: str, tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> Iterator[Any]:
    """A gateway and a rollout of its own, which holds m-2 back until somebody approves it."""
    make, roll_out = makers
    folder = tmp_path_factory.mktemp("moving")
    with make(kafka, redis_url, registry_url, folder) as ground, ground.gateway() as running, roll_out(ground, running):
        yield running
        browser.open("about:blank")  # so that it asks nobody who is gone
        browser.errors()


def log_in(browser: Browser, running: Any, role: str) -> None:
    """With the token of a role, typed."""
    browser.open(f"{running.url}/console/log-in?next=/{running.pipeline.name}/model")
    browser.type("#token", running.tokens[role] + ENTER)
    until(lambda: browser.text("h1") == "Model", lambda: browser.text("body"))


def command(browser: Browser, button: str, reason: str, answer: str) -> None:
    """Give a reason, press a button, and wait for the answer in the page."""
    browser.type("#reason", reason)
    browser.click(f"#do-{button}")
    until(lambda: answer in browser.text("body"), lambda: browser.text("body"))


def test_a_model_is_approved_promoted_and_rolled_back(browser: Browser, moving: Any) -> None:
    """
    By an approver, then by an operator, each with a reason; the deployment changes each time, and the page shows it.
    """

    def now() -> dict[str, Any]:
        found: dict[str, Any] = moving.client("viewer").get(moving.path("deployments")).json()["now"]
        return found

    log_in(browser, moving, "approver")
    assert browser.run("return [...document.querySelectorAll('.actions button:enabled')].map(one => one.id)") == ["do-approve"]
    command(browser, "approve", "the slices look right", "approve is done")
    assert (now()["state"], now()["shadows"][0]["model"]) == ("shadow", "m-2")
    command(browser, "promote", "as good as the champion", "promote is done")
    assert now()["state"] == "canary"
    assert browser.text(".steps li.now strong") == "25% of keys"
    assert "answers 25 % of the keys, as canary" in browser.text("#part-now")
    browser.open(f"{moving.url}/")
    browser.click(".who form button")
    until(lambda: browser.text("h1") == "Log in", lambda: browser.text("body"))
    log_in(browser, moving, "operator")
    command(browser, "rollback", "not today", "rollback is done")
    assert (now()["state"], now()["arms"][0]["share"]) == ("idle", 1.0)
    moves = browser.text(".moves")
    assert "the-operator: not today" in moves and "the-approver: as good as the champion" in moves
    assert browser.errors() == []


def test_a_move_of_somebody_else_is_seen_without_loading_the_page_again(browser: Browser, moving: Any) -> None:
    """
    And what is being typed stays.
    """
    log_in(browser, moving, "operator")
    browser.type("#reason", "half a sent")
    moving.client("operator").post(moving.path("models/pause"), json={"reason": "a holiday"})
    until(lambda: "awaiting approval, paused" in browser.text("#part-now"), lambda: browser.text("#part-now"))
    assert browser.run("return document.getElementById('reason').value") == "half a sent"
    assert browser.run("return document.activeElement.id") == "reason"


def test_pages_fit_a_phone_are_dark_in_the_dark_and_can_be_reached_by_keyboard(browser: Browser, moving: Any) -> None:
    """
    No page is wider than 390 pixels; the ground is dark, and light again by the switch; the first key leads past the menu.
    """
    log_in(browser, moving, "viewer")
    browser.resize(390, 800)
    browser.prefer("dark")
    name = moving.pipeline.name
    for path in ("", *(f"{name}/{page}" for page in ("model", "quality", "events", "dead-letters", "features"))):
        browser.open(f"{moving.url}/{path}")
        assert (path, browser.run("return document.documentElement.scrollWidth")) == (path, 390)
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(16, 17, 20)"
        assert browser.errors() == []
    browser.click("#theme")  # from auto to light
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.screenshot()[:8] == b"\x89PNG\r\n\x1a\n"
    browser.open(f"{moving.url}/")
    browser.type("body", "\ue004")
    assert browser.run("return document.activeElement.textContent") == "Skip to the page"
    browser.run("localStorage.clear()")

"""The page in a real browser, Debian's Chromium, driven by its own protocol: from a run to a token, by clicks and keys."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lake_maker import derived, trained
from tests.page_rig import HOSTILE, PAGES, rollout

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.extra,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)"),
]


class Browser:
    """One tab; `ask` evaluates JavaScript in it."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        assert CHROMIUM is not None
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
        ]
        self._process = subprocess.Popen([CHROMIUM, *options, "about:blank"], stderr=subprocess.DEVNULL)
        port = self._until(lambda: (profile / "DevToolsActivePort").read_text().split()[0])
        tabs = self._until(
            lambda: [t for t in httpx.get(f"http://127.0.0.1:{port}/json").json() if t["type"] == "page"]
        )
        self._tab = connect(tabs[0]["webSocketDebuggerUrl"], max_size=None)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._tab.close()
        self._process.terminate()
        self._process.wait(20)

    def send(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._tab.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._tab.recv(60))).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def ask(self, script: str) -> Any:
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        self.ask("window.stale = true")
        self.send("Page.navigate", url=address)
        self.wait("!window.stale && document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait(self, script: str) -> None:
        self._until(lambda: self.ask(script) or None)

    def click(self, selector: str) -> None:
        """Click and wait for the page that it leads to."""
        self.wait(f"document.querySelector({json.dumps(selector)}) !== null")
        self.ask(f"window.stale = true; document.querySelector({json.dumps(selector)}).click()")
        self.wait("!window.stale && document.readyState === 'complete'")

    def key(self, key: str) -> None:
        self.ask("window.stale = true")
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")
        self.wait("!window.stale && document.readyState === 'complete'")

    def _until(self, look: Any, seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = look()
            except (OSError, httpx.HTTPError, IndexError, AssertionError):
                found = None
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError("it did not come about in time")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    rows = [row for number, reward in enumerate((1.0, 0.0, 1.0)) for row in rollout(number, reward, HOSTILE)]
    lake, _ = derived(home, rows)
    trained(lake)
    command = [sys.executable, "-m", "lightning_flows.flows.cli", "ui", "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        yield served.stdout.readline().split()[4].removesuffix("/")
        served.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_from_the_run_to_a_token_by_clicks_and_keys(browser: Browser, address: str) -> None:
    browser.send("Page.enable")
    browser.send("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.alerted = true; }")
    browser.open(f"{address}/")
    browser.click('td a[href="/run/run"]')
    assert browser.ask("document.querySelectorAll('svg.chart').length") == 1, "the reward; no evaluation ran"
    browser.click('nav a[href$="/tasks"]')
    browser.click("table.heat td.h6 a")  # 2 of 3 right
    assert browser.ask("document.querySelectorAll('.card').length") == 3
    browser.click("a.card.bad")
    assert browser.ask("document.querySelector('.call .tokens span.p0').title").startswith("p = 0.018, advantage -1.")
    tint = "getComputedStyle(document.querySelector('.call .tokens span.p0')).backgroundColor"
    legend = "[...document.querySelectorAll('.legend > span')].filter((s) => s.checkVisibility()).map((s) => s.className).join()"
    pushed, explained = browser.ask(tint), [browser.ask(legend)]
    tints = {pushed}
    for name in ("probability", "ratio"):
        browser.ask(f"document.querySelector('input[value={name}]').click()")
        tints.add(browser.ask(tint))
        explained.append(browser.ask(legend))
    assert len(tints | {"rgba(0, 0, 0, 0)"}) == 4, "the style sheet is applied, and the choice too"
    assert explained == ["of-advantage", "of-probability tokens", "of-ratio tokens"], "advantage first; one legend each"
    browser.key("j")
    assert browser.ask("location.pathname").endswith("/rollout/r.2")
    browser.key("k")
    browser.key("g")
    assert browser.ask("location.pathname").endswith("/group/g")
    assert browser.ask("window.alerted") is None, "a span's text ran as a script"


def test_every_page_runs_fits_and_is_light_or_dark(browser: Browser, address: str) -> None:
    wrong = "window.wrong = []; for (const kind of ['error', 'securitypolicyviolation']) addEventListener(kind, (e) => wrong.push(e.message || e.violatedDirective));"
    browser.send("Page.enable")
    browser.send("Page.addScriptToEvaluateOnNewDocument", source=wrong)
    browser.send("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    backs = set()
    for scheme in ("light", "dark"):
        browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for page in PAGES:
            browser.open(address + page)
            assert browser.ask("wrong") == [], page
            assert browser.ask("document.documentElement.scrollWidth - innerWidth") <= 0, (
                f"{page} is wider than the window"
            )
            backs.add((scheme, browser.ask("getComputedStyle(document.body).backgroundColor")))
    assert len(backs) == 2 and len({back for _, back in backs}) == 2, backs


def test_a_figures_sql_is_copied(browser: Browser, address: str) -> None:
    browser.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.send("Page.bringToFront")
    for gone in ("false", "true"):  # as it is over HTTP on another address
        browser.open(f"{address}/run/run")
        browser.ask("navigator.clipboard.writeText('nothing')")
        browser.ask(f"if ({gone}) Object.defineProperty(navigator, 'clipboard', {{value: undefined}})")
        browser.ask("document.querySelector('details.sql').open = true; document.querySelector('button.copy').click()")
        browser.wait("document.querySelector('button.copy').textContent === 'copied'")
        browser.open(f"{address}/ask")
        assert browser.ask("navigator.clipboard.readText()").startswith("-- How a run went"), gone

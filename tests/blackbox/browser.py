"""A headless Chromium, driven by its own WebDriver over HTTP: no library."""

import base64
import contextlib
import http.client
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import eventually

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--window-size=1280,1600",
]


class Browser:
    def __init__(self, port, session):
        self.port, self.session = port, session

    def ask(self, method, path, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, json.dumps(body) if method == "POST" else None)
        value = json.loads(connection.getresponse().read())["value"]
        connection.close()
        assert not isinstance(value, dict) or "error" not in value, value
        return value

    def do(self, command, **body):
        return self.ask("POST", f"/session/{self.session}/{command}", **body)

    def open(self, path):
        self.do("url", url=f"file://{path}")

    def run(self, script, *args):
        """What a function body returns in the page."""
        return self.do("execute/sync", script=script, args=list(args))

    def element(self, selector):
        found = self.do("element", using="css selector", value=selector)
        return "element/" + next(iter(found.values()))

    def click(self, selector):
        self.do(f"{self.element(selector)}/click")

    def type(self, selector, text):
        self.do(f"{self.element(selector)}/value", text=text)

    def scheme(self, name):
        """Looks as if the user preferred `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.do("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": [feature]})

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.ask("GET", f"/session/{self.session}/screenshot")))

    def complaints(self):
        """What the console was told, refusals of the content policy among it."""
        return [entry["message"] for entry in self.do("se/log", type="browser")]


@contextlib.contextmanager
def chromium():
    driver = shutil.which("chromedriver")
    if not driver or not shutil.which("chromium"):
        pytest.skip("the page is NOT shown in a browser: no chromium with chromedriver (Debian package chromium-driver)")
    with tempfile.TemporaryDirectory() as profile, open(f"{profile}/driver.log", "w+b") as log:
        process = subprocess.Popen([driver, "--port=0"], stdout=log, stderr=log)
        try:
            said = lambda: Path(log.name).read_text()
            eventually(lambda: "started successfully on port" in said())
            port = int(said().split("started successfully on port")[1].split(".")[0])
            browser = Browser(port, None)
            options = {"args": [*FLAGS, f"--user-data-dir={profile}/data"]}
            wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
            browser.session = browser.ask("POST", "/session", capabilities=wanted)["sessionId"]
            try:
                yield browser
            finally:
                browser.ask("DELETE", f"/session/{browser.session}")
        finally:
            process.terminate()
            process.wait(timeout=20)

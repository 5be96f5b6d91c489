# SPDX-License-Identifier: Apache-2.0
"""Drive a real Chromium through chromedriver's own protocol (W3C WebDriver): no library needed."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element's id
KEYS = {"Enter": "\ue007", "Left": "\ue012", "Right": "\ue014", "Backspace": "\ue003"}


class Browser:
    """A window of the browser.

    Args:
        root: of the driver's session.
    """

    def __init__(self, root):
        self.root = root

    def call(self, method, path, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.root + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:500]) from None

    def open(self, url):
        self.call("POST", "/url", url=url)

    def run(self, script, *arguments):
        """Return what a function's body of JavaScript returns."""
        return self.call("POST", "/execute/sync", script=script, args=list(arguments))

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.run(script, selector)

    def press(self, *keys):
        """Press and release keys, one after the other, as a keyboard does."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self.call("POST", "/actions", actions=[source])

    def click(self, selector):
        found = self.call("POST", "/element", using="css selector", value=selector)
        self.call("POST", f"/element/{found[ELEMENT]}/click")

    def wait(self, script, *arguments, seconds=20):
        """Wait until a function's body returns true."""
        for _ in range(seconds * 50):
            if self.run(script, *arguments):
                return
            time.sleep(0.02)
        raise AssertionError(f"never true: {script}")

    def log(self):
        """Return the errors that the browser has reported."""
        return self.call("POST", "/se/log", type="browser")

    def screenshot(self, path, width=1280, height=800):
        self.call("POST", "/window/rect", width=width, height=height)
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("GET", "/screenshot")))


@contextlib.contextmanager
def browser(folder):
    """Run a browser without a window; its profile is in a folder."""
    command = [DRIVER, "--port=0"]
    environment = {**os.environ, "HOME": str(folder)}
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    window = None
    try:
        port = None
        while port is None:
            line = driver.stdout.readline()
            assert line, "chromedriver has ended"
            found = re.search(r"successfully on port (\d+)", line)
            port = found and found[1]
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"]
        arguments += ["--disable-dev-shm-usage", f"--user-data-dir={folder}/profile"]
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        window = Browser(f"http://127.0.0.1:{port}")
        made = window.call("POST", "/session", capabilities={"alwaysMatch": wanted})
        window.root += f"/session/{made['sessionId']}"
        yield window
    finally:
        if window is not None and "/session/" in window.root:
            window.call("DELETE", "")
        driver.terminate()
        driver.wait(timeout=20)

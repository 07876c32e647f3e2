"""Opens a page in headless Chromium and says what happened there, as JSON.

    python3 browser_check.py PAGE [FOLDER-FOR-SCREENSHOTS]

Speaks the DevTools protocol over a pipe (--remote-debugging-pipe), so that it needs nothing but Python. The page is
opened at 1280 x 900 and as a phone of 360 x 800, light and dark. Exit status 3: there is no browser.
"""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"]
DEADLINE = time.monotonic() + 90

STATE = """(async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  await frame(); await frame();
  const figures = Array.from(document.querySelectorAll('figure.chart'));
  const many = (box, what) => box.querySelectorAll(what).length;
  return JSON.stringify({
    openMs: performance.now(),
    scrollWidth: document.documentElement.scrollWidth,
    clientWidth: document.documentElement.clientWidth,
    charts: figures.map((f) => ({
      title: f.querySelector('h3').textContent,
      svg: many(f, 'svg'),
      lines: Array.from(f.querySelectorAll('path.line, path.ideal')).map((p) => p.getTotalLength()),
      bands: many(f, 'path.band'), circles: many(f, 'circle'), errors: many(f, 'path.error'),
      bars: Array.from(f.querySelectorAll('svg rect')).map((r) => r.getBBox().width),
      marks: many(f, 'line.mark'), ticks: many(f, '.tick text'),
      outside: Array.from(f.querySelectorAll('svg text, svg circle, svg path.line')).filter((t) => {
        const box = t.getBoundingClientRect(), all = f.querySelector('svg').getBoundingClientRect();
        return box.width && (box.left < all.left - 2 || box.right > all.right + 2);
      }).map((t) => t.textContent || t.getAttribute('class') || t.tagName),
      rows: many(f, 'details tbody tr'),
      label: f.querySelector('.plot') && f.querySelector('.plot').getAttribute('aria-label'),
    })),
    background: getComputedStyle(document.body).backgroundColor,
    injected: window.injected === true,
    images: many(document, 'img, iframe, link, object'),
  });
})()"""


class Browser:
    def __init__(self, program, profile):
        to_read, self.to = os.pipe()
        self.back, to_write = os.pipe()
        # The browser reads from 3 and writes to 4.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, to_write)]
        os.close(to_read), os.close(to_write)

        def place():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = ["--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                 "--user-data-dir=" + profile, "--headless", "about:blank"]
        self.process = subprocess.Popen([program] + flags, preexec_fn=place, pass_fds=(3, 4), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in high:
            os.close(fd)
        self.number, self.buffer, self.events = 0, b"", []

    def read(self):
        while b"\0" not in self.buffer:
            if not select.select([self.back], [], [], max(0, DEADLINE - time.monotonic()))[0]:
                sys.exit("the browser does not answer")
            data = os.read(self.back, 1 << 20)
            if not data:
                sys.exit("the browser has ended")
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        while not any(e.get("method") == method for e in self.events):
            self.events.append(self.read())

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def evaluate(browser, session, expression):
    answer = browser.call("Runtime.evaluate", session, expression=expression, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in answer:
        sys.exit(str(answer["exceptionDetails"]))
    return answer["result"].get("value")


def said(events):
    """What the console would show as an error or a warning, and the addresses that were asked for."""
    console, requests = [], []
    for event in events:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            console.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            console.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            console.append(parameters["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            requests.append(parameters["request"]["url"])
    return console, requests


def look(browser, url, width, height, scheme, folder):
    browser.events.clear()
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
        browser.call(domain + ".enable", session)
    browser.call("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 500)
    browser.call("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Page.navigate", session, url=url)
    browser.wait_for("Page.loadEventFired")
    seen = json.loads(evaluate(browser, session, STATE))
    seen["width"], seen["scheme"] = width, scheme
    # The pointer over a chart of lines.
    place = evaluate(browser, session, """(() => {
      const svg = Array.from(document.querySelectorAll('figure.chart svg')).find((s) => s.querySelector('.pointer'));
      if (!svg) return '';
      svg.scrollIntoView({block: 'center'});
      const r = svg.getBoundingClientRect();
      return JSON.stringify([r.left + r.width * 0.6, r.top + r.height / 2]);
    })()""")
    if place:
        x, y = json.loads(place)
        browser.call("Input.dispatchMouseEvent", session, type="mouseMoved", x=x, y=y)
        seen["readout"] = evaluate(browser, session,
                                   "Array.from(document.querySelectorAll('.readout')).map((r) => r.textContent).join('')")
    if folder:
        shot = browser.call("Page.captureScreenshot", session, captureBeyondViewport=True,
                            clip={"x": 0, "y": 0, "width": width, "height": evaluate(
                                browser, session, "document.documentElement.scrollHeight"), "scale": 1})
        with open(os.path.join(folder, f"{width}-{scheme}.png"), "wb") as file:
            file.write(base64.b64decode(shot["data"]))
    seen["pdf_bytes"] = len(base64.b64decode(browser.call("Page.printToPDF", session)["data"])) if scheme == "light" else 0
    seen["console"], seen["requests"] = said(browser.events)
    # What the page forbids itself: the request is refused by its own policy, not by a network that is not there.
    browser.events.clear()
    seen["forbidden"] = evaluate(browser, session, """new Promise((done) => {
      document.addEventListener('securitypolicyviolation', (e) => done(e.violatedDirective));
      new Image().src = 'http://127.0.0.1:9/x.png';
      setTimeout(() => done(''), 5000);
    })""")
    browser.call("Target.closeTarget", targetId=target)
    return seen


def main():
    program = next((path for path in map(shutil.which, NAMES) if path), None)
    if not program:
        print("no browser: none of " + ", ".join(NAMES), file=sys.stderr)
        sys.exit(3)
    url = "file://" + os.path.abspath(sys.argv[1])
    folder = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(prefix="longspan-browser-") as profile:
        browser = Browser(program, profile)
        try:
            views = [look(browser, url, w, h, scheme, folder)
                     for w, h, scheme in ((1280, 900, "light"), (360, 800, "light"), (360, 800, "dark"))]
        finally:
            browser.close()
    print(json.dumps({"program": program, "url": url, "views": views}))


main()

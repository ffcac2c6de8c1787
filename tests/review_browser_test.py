"""The report and the web app in a real browser, headless: Debian's chromium, driven by selenium.

With CAI_JAX_SCREENSHOTS=DIR the pages' pictures are written there; with CAI_JAX_RUN=WORKDIR they
show that run: CAI_JAX_SCREENSHOTS=docs/review CAI_JAX_RUN=runs/sandbox pytest -m slow THIS_FILE
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from reviewed import HOSTILE, write_run

from cai_jax.evaluation.snapshot_comparisons import read, standing
from cai_jax.review import results
from cai_jax.review.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="there is no chromium: apt-get install chromium-driver"
    ),
]
ROOT = Path(__file__).parents[1]


class Browser:
    """A page to look at. Waits for what it is asked for, for some seconds."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get(address)
        self.until(lambda: self.text("body") and "is being opened" not in self.text("body"))

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css):
        found = self.all(css)
        return found[0].text if found else ""

    def click(self, words):
        button = f"//button[contains(., '{words}')] | //a[contains(., '{words}')]"
        self.driver.find_element(By.XPATH, button).click()

    def press(self, *keys):
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def run(self, code):
        return self.driver.execute_script(code)

    def until(self, so, seconds=20):
        return WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: so())

    def counts(self):
        self.until(lambda: "still being read" not in self.text("#counts") and self.text("#counts"))
        return self.text("#counts")

    def complaints(self, but=()):
        """What the console holds, and whether any text was run."""
        logged = [row["message"] for row in self.driver.get_log("browser")]
        logged = [line for line in logged if not any(words in line for words in but)]
        assert self.run("return window.hacked === undefined"), "text was run as code"
        return logged


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-first-run",
        "window-size=1280,900", "disable-background-networking",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def browser(driver):
    driver.get("about:blank")
    driver.get_log("browser")
    return Browser(driver)


class Served:
    """`cai-jax serve` in a process of its own."""

    def __init__(self, *workdirs, port=0, cwd=ROOT):
        command = [sys.executable, "-m", "cai_jax.cli", "serve", f"--port={port}",
                   "--check_every=10", "--workdir", *map(str, workdirs)]  # fmt: skip
        own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=os.environ | own, stderr=subprocess.PIPE, text=True
        )
        said = self.process.stderr.readline()
        assert said.startswith("http://"), said + self.process.stderr.read()
        self.address = said.strip().rstrip("/")
        self.port = int(self.address.rpartition(":")[2])

    def get(self, path):
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return answer.read().decode()

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(30)
        self.process.stderr.close()


@pytest.fixture
def serving():
    """serving(workdirs, port) -> Served; ended after the test."""
    made = []

    def serve(*workdirs, **how):
        made.append(Served(*workdirs, **how))
        return made[-1]

    yield serve
    for server in made:
        if server.process.poll() is None:
            server.kill()


def test_a_report_from_disk(browser, tmp_path):
    """Read the run, filter, open a chain, read what a revision changed, all by keys."""
    said = {
        "response 3": "Pick the lock with a pin.",
        "critique 3 0": "It could get somebody robbed.",
        "revision 3 0": "Call the lock smith with a pin.",
    }
    run = write_run(tmp_path / "run", text=lambda name: said.get(name, name))
    browser.open(write_report([run], tmp_path / "report.html").as_uri())
    assert "50% [40, 60]" in browser.text("table") and "difference" in browser.text("main")
    assert browser.run("return document.querySelector('figure img').naturalWidth") == 4
    browser.press("2")
    assert browser.counts() == "12 of 12 rows"
    browser.press("/")
    browser.press("lock")
    browser.until(lambda: browser.text("#counts") == "1 of 12 rows")
    browser.press(Keys.ESCAPE)
    hidden = browser.all("article .hidden > span:first-child")
    assert len(hidden) == 6 and "blur" in hidden[0].value_of_css_property("filter")
    browser.press("r")
    browser.until(lambda: not browser.all("article .hidden"))
    assert [e.text for e in browser.all("article del")][:1] == ["Pick"]
    assert "smith" in " ".join(e.text for e in browser.all("article ins"))
    assert "PM 0.30" in browser.text("article") and "(-0.10)" in browser.text("article")
    browser.press("d")
    browser.until(lambda: not browser.all("article ins"))
    assert "Call the lock smith with a pin." in browser.text("article")
    browser.press("3")
    for number in (0, 1):
        browser.until(lambda number=number: f"thought {number}" in browser.text("article"))
        browser.press("j")
    browser.until(lambda: "thought 2" in browser.text("article"))
    assert "P(A is better)" in browser.text("article") and "0.83" in browser.text("article")
    browser.press("4")
    browser.until(lambda: "update 2" in browser.text("article").lower())
    browser.press("5")
    browser.until(lambda: "SL-CAI" in browser.text("article"))
    assert browser.complaints() == []


def test_filters(browser, tmp_path):
    refused = {"response 1": "I can't help with that.", "revision 1 1": "Ask a locksmith instead."}
    run = write_run(tmp_path / "run", text=lambda name: refused.get(name, name))
    other = write_run(tmp_path / "other", config={"seed": 5})
    browser.open(write_report([run, other], tmp_path / "report.html").as_uri())
    assert "Settings in which the runs differ" in browser.text("main")
    assert "seed" in browser.text("main table tbody")
    browser.press("2")
    assert browser.counts() == "24 of 24 rows"

    def pick(label, option):
        choose = f"//label[contains(., '{label}')]/select/option[contains(., '{option}')]"
        browser.driver.find_element(By.XPATH, choose).click()
        time.sleep(0.1)
        return int(browser.counts().split()[0])

    assert pick("Run", "other") == 12
    assert pick("Run", "any") == 24
    assert pick("Prompts", "helpful") == 12
    assert pick("Prompts", "any") == 24
    assert pick("Principle", "principle 1") == 4
    assert pick("Principle", "any") == 24
    assert pick("Refusal", "the first text refuses") == 1
    assert pick("Refusal", "evasive at first, not at last") == 1
    assert pick("Refusal", "any") == 24
    assert pick("Score", "rises") == 10 and pick("Score", "falls") == 12
    pick("Score", "any")
    pick("Order", "greatest rise first")
    assert browser.all(".list small")[0].text == "+1.00"
    assert browser.complaints() == []


def test_ten_thousand_chains_are_filtered_in_a_fifth_of_a_second(browser, tmp_path):
    run = write_run(tmp_path / "run", count=5000)
    for stage in ("compare", "ppo", "evaluation"):
        shutil.rmtree(run / stage)
    file = write_report([run], tmp_path / "report.html")
    assert file.stat().st_size < 10e6
    browser.open(f"{file.as_uri()}#chains/")
    assert browser.counts() == "10000 of 10000 rows"
    took = [
        browser.driver.execute_async_script(
            """
            const [words, expected, done] = [arguments[0], arguments[1], arguments[2]];
            const field = document.getElementById("search"), start = performance.now();
            field.value = words;
            field.dispatchEvent(new Event("input", { bubbles: true }));
            const look = () => document.getElementById("counts").textContent.startsWith(expected)
              ? done(performance.now() - start) : requestAnimationFrame(look);
            look();
            """,
            words, expected,
        )
        for words, expected in (("revision 777 ", "1 of"), ("critique 12", "111 of"),
                                ("nothing of the kind", "0 of"), ("says so", "10000 of"))
    ]  # fmt: skip
    assert sorted(took)[1] < 200, took
    assert browser.complaints() == []


def test_a_run_that_goes_on_shows_new_rows(browser, serving, tmp_path):
    run = write_run(tmp_path / "run")
    late = run / "revise" / "revisions" / "00001-of-00002.jsonl"
    kept = late.read_bytes()
    late.unlink()
    browser.open(f"{serving(run).address}/#chains/")
    assert browser.counts() == "6 of 6 rows"
    time.sleep(3.5)  # it has asked what is there once
    late.write_bytes(kept)
    browser.until(lambda: browser.text("#counts") == "12 of 12 rows")
    assert browser.complaints() == []


def test_two_raters_a_kill_and_the_same_elo_from_the_file(browser, serving, tmp_path):
    """20 pairs each, the server killed in the middle; what was chosen is what is exported."""
    run = write_run(tmp_path / "run")
    server = serving(run)
    done = 0

    def progress(count):
        browser.until(lambda: browser.text("#progress").startswith(f"{count} of"))

    for rater, keys in (("ann", "1324"), ("Bob O'Neil", "1144")):
        browser.open(f"{server.address}/rate")
        if browser.all("header button"):
            browser.click("another name")
        browser.until(lambda: browser.all("#rater"))
        field = browser.all("#rater")[0]
        field.clear()
        field.send_keys(rater, Keys.ENTER)
        progress(0)
        browser.press("r")
        pairs = 0
        while pairs < 20:
            before = browser.text("main")
            counted = browser.text("#progress")
            browser.press(keys[pairs % 4])
            browser.until(lambda before=before: browser.text("main") != before)
            # A check for attention leaves the count of pairs as it is.
            pairs += browser.text("#progress") != counted
            done += 1
            if rater == "ann" and pairs == 9:
                browser.press("u")
                progress(8)
                browser.press(Keys.TAB)
                progress(9)
                browser.press("u")
                progress(8)
                browser.press("4")
                progress(9)
            if rater == "ann" and pairs == 13 and server.process.poll() is None:
                server.kill()
                browser.press("1")
                browser.until(lambda: "nothing was lost" in browser.text(".error"))
                server = serving(run, port=server.port)
                browser.press("1")
                progress(14)
                pairs, done = 14, done + 1
    shown = json.loads(server.get("/api/rate/results"))
    assert shown["choices"] == 40 and shown["skipped"] == 0
    assert {r["name"]: r["choices"] for r in shown["raters"]} == {"ann": 20, "Bob O'Neil": 20}
    assert all(r["checks"] == 1 for r in shown["raters"]) and shown["agreement"]["pairs"] == 20
    exported = tmp_path / "people.jsonl"
    exported.write_text(server.get("/export/snapshot_comparisons.jsonl"), "utf-8")
    made = read(exported)
    assert sum(c.judge in ("ann", "Bob O'Neil") for c in made) == 40
    browser.open(f"{server.address}/results")
    for kind, name in (("red_team", "harmlessness"), ("helpful", "helpfulness")):
        elo = standing(made, kind, "SL-CAI", True, 0, results.RESAMPLES).elo
        browser.until(lambda name=name: browser.all(f"#elo-{name} tbody tr"))
        for snapshot, interval in elo.items():
            row = next(r.text for r in browser.all(f"#elo-{name} tbody tr")
                       if r.text.startswith(snapshot))  # fmt: skip
            numbers = [int(x) for x in re.findall(r"-?\d+", row.removeprefix(snapshot))]
            expected = [interval.value, interval.low, interval.high, interval.n]
            assert numbers == pytest.approx([round(x) for x in expected], abs=1)
    refused = ("net::ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
    assert browser.complaints(but=refused) == []


def test_hostile_text_is_shown_as_text_on_every_page(browser, serving, tmp_path):
    def text(name):
        return f"{HOSTILE[sum(name.encode()) % len(HOSTILE)]} {name}"

    run = write_run(tmp_path / "run<b onclick=hacked()>", text=text)
    report = write_report([run], tmp_path / "report.html").as_uri()
    server = serving(run)
    for address in (report, f"{server.address}/"):
        browser.open(address)
        browser.press("r")
        assert "<b onclick=hacked()>" in browser.text("h2")
        assert text("measure").split()[0] in browser.text("main")
        for view in "2345":
            browser.press(view)
            browser.counts()
            for _ in range(12):
                browser.press("j")
                opened = browser.run("return document.querySelector('article').textContent")
                assert "(empty)" not in opened
            shown = browser.run("return document.querySelector('.prompt .text').textContent")
            assert any(hostile.replace("\u0000", "") in shown.replace("\u0000", "")
                       for hostile in HOSTILE)  # fmt: skip
    browser.open(f"{server.address}/rate")
    browser.until(lambda: browser.all("#rater"))
    browser.all("#rater")[0].clear()
    browser.all("#rater")[0].send_keys("<img src=x onerror=hacked=1>", Keys.ENTER)
    browser.until(lambda: browser.text("#progress").startswith("0 of"))
    for count in range(1, 9):
        browser.press("r", "1")
        browser.until(lambda count=count: browser.text("#progress").startswith(f"{count} of"))
    browser.open(f"{server.address}/results")
    browser.until(lambda: "<img src=x onerror=hacked=1>" in browser.text("#raters"))
    assert browser.run("return document.querySelectorAll('iframe, img[src=x], svg').length") == 0
    assert browser.complaints() == []


@pytest.mark.parametrize("size", [(390, 844), (1280, 900)], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_screen(browser, serving, tmp_path, size):
    run = write_run(tmp_path / "run", text=lambda name: f"{name} " + "unbroken" * 30)
    server = serving(run)
    browser.driver.set_window_size(*size)
    try:
        for place in ("/", "/#chains/", "/#comparisons/", "/#samples/", "/#answers/", "/rate"):
            browser.open(server.address + place)
            browser.until(lambda: browser.all("main"))
            wide = "return document.documentElement.scrollWidth - window.innerWidth"
            assert browser.run(wide) <= 1, place
            unnamed = browser.run(
                "return [...document.querySelectorAll('button, input, select, a')].filter((e) =>"
                " !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))"
                ".map((e) => e.outerHTML)"
            )
            assert unnamed == []
    finally:
        browser.driver.set_window_size(1280, 900)


def test_screenshots(browser, serving, tmp_path):
    """A picture of each page; kept where CAI_JAX_SCREENSHOTS says."""
    to = Path(os.environ.get("CAI_JAX_SCREENSHOTS", tmp_path / "pictures")).resolve()
    to.mkdir(parents=True, exist_ok=True)
    run = Path(os.environ.get("CAI_JAX_RUN") or write_run(tmp_path / "run"))
    shutil.copytree(run, tmp_path / "runs" / run.name)
    server = serving(f"runs/{run.name}", cwd=tmp_path)  # the path is in the pictures
    for name, place in (("run", "/"), ("chains", "/#chains/"), ("rate", "/rate"),
                        ("results", "/results")):  # fmt: skip
        browser.open(server.address + place)
        if name == "run":
            browser.until(lambda: browser.all("article table"))
        if name == "chains":
            browser.counts()
            browser.press("j", "j", "r")
        if name == "rate":
            browser.until(lambda: browser.all("#rater"))
            browser.all("#rater")[0].clear()
            browser.all("#rater")[0].send_keys("ann", Keys.ENTER)
            browser.until(lambda: browser.text("#progress"))
            browser.press(*"1243", "1", "r")
        time.sleep(0.7)
        browser.driver.save_screenshot(str(to / f"{name}.png"))
        assert (to / f"{name}.png").stat().st_size > 5000
    assert browser.complaints() == []

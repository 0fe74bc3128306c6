"""The page in a real browser: Debian's Chromium with its driver. `EVOMERGE_BROWSER=required` forbids to skip these, as in CI."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import yaml
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from evomerge.view import frozen

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
EVIL = '<img src=x onerror="document.title=1">'
WAIT = 300  # seconds at most, on a machine that is busy with other tests

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and os.environ.get("EVOMERGE_BROWSER") != "required",
    reason="no browser here: type `apt-get install chromium chromium-driver`",
)


@contextmanager
def opened(url, width=1400, height=1000, scheme="light"):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        driver.get(url)
        yield driver
    finally:
        driver.quit()


def until(driver, condition):
    waiting = WebDriverWait(driver, WAIT, 0.2, ignored_exceptions=[StaleElementReferenceException])
    try:
        return waiting.until(condition)
    except TimeoutException as error:
        raise AssertionError(f"the page shows: {driver.find_element(By.TAG_NAME, 'body').text}") from error


def text(driver, selector):
    found = driver.find_elements(By.CSS_SELECTOR, selector)
    return found[0].text if found else ""


def count(driver):
    found = re.search(r"All candidates: (\d+)", text(driver, "#candidates > summary"))
    return int(found[1]) if found else 0


def complaints(driver):
    """What the console says, without answers that the page itself shows."""
    return [one["message"] for one in driver.get_log("browser") if "422" not in one["message"]]


def go(driver, tab):
    driver.find_element(By.ID, f"tab-{tab}").click()


@pytest.fixture(scope="module")
def running(small_digits, tmp_path_factory):
    """A search that is held up after its first candidates, and `evomerge view` of it: its folder, address and token."""
    folder = tmp_path_factory.mktemp("browser")
    tasks = {n: {**t, "search_metric": "accuracy", "keep_margins": True} for n, t in small_digits.tasks.items()}
    data = {
        "name": "watched",
        "pool": small_digits.pool,
        "tasks": dict(list(tasks.items())[:2]),
        "space": "task_arithmetic",
        "driver": {"kind": "front"},
        "evaluations": 40,
        "report": {"scales": [0.4], "mixtures": 0, "front": 3, "resamples": 100},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    out, command = folder / "run", [sys.executable, "-m", "evomerge"]
    with (folder / "log").open("wb") as log:
        search = subprocess.Popen([*command, "run", str(folder / "study.yaml"), "-o", str(out)], stdout=log, stderr=log)
    try:
        start = time.monotonic()
        while not (out / "journal.jl").exists() or (out / "journal.jl").read_bytes().count(b"\n") < 8:
            assert search.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < start + WAIT
            time.sleep(0.05)
        search.send_signal(signal.SIGSTOP)
        view = subprocess.Popen([*command, "view", str(out), "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            words = [view.stdout.readline() for _ in range(3)]
            yield out, re.search(r"http://\S+", words[0])[0], words[1].split()[-1], search
        finally:
            view.terminate()
            view.wait()
            view.stdout.close()
    finally:
        search.kill()
        search.wait()


def test_watch_a_search_select_move_a_slider_export_and_load(running):
    out, url, token, search = running
    with opened(url) as driver:
        early = until(driver, count)
        assert early < 40
        search.send_signal(signal.SIGCONT)
        until(driver, lambda d: count(d) > early)
        assert search.wait(WAIT) == 0
        until(driver, lambda d: count(d) == 40 and "On unseen examples" in text(d, "main"))

        chosen = driver.find_elements(By.CSS_SELECTOR, "section[aria-label=Tables] button.link")[0]
        name = chosen.text
        chosen.click()
        until(driver, lambda d: text(d, "#selected").startswith(name))
        until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "table.heat"))
        Select(driver.find_element(By.ID, "against")).select_by_value("base")
        until(driver, lambda d: "gained" in text(d, "main"))

        go(driver, "preferences")
        until(driver, lambda d: "interval" in text(d, "#answer"))
        before = text(driver, "#answer")
        slider = driver.find_element(By.ID, "slider-0")
        driver.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", slider)
        until(driver, lambda d: text(d, "#answer") != before and "interval" in text(d, "#answer"))

        go(driver, "front")
        until(driver, lambda d: text(d, "#selected").startswith(name))
        driver.find_element(By.ID, "export-button").click()
        driver.find_element(By.ID, "token").send_keys("wrong", Keys.ENTER)
        until(driver, lambda d: "token that `evomerge view` shows" in text(d, "#export"))
        assert not (out / "exports").exists()
        driver.find_element(By.ID, "token").clear()
        driver.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
        until(driver, lambda d: "Written:" in text(d, "#export") or "Failed" in text(d, "#export"))
        assert "Written:" in text(driver, "#export"), text(driver, "#export")
        assert not [line for line in complaints(driver) if "403" not in line]

    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(out / "exports" / f"candidate-{name[1:]}")
    assert sum(parameter.numel() for parameter in loaded.parameters()) > 0


def test_every_view_shows_something_and_the_console_is_quiet(client):
    with opened(client.server.url) as driver:
        until(driver, lambda d: text(d, "#selected"))
        for tab, words in {
            "progress": "Hypervolume",
            "genes": "Slices through",
            "population": "no population",
            "preferences": "best of the measured front",
            "compare": "one study here",
            "front": "The front on search examples",
        }.items():
            go(driver, tab)
            until(driver, lambda d, words=words: words in text(d, "#view"))
        assert not complaints(driver)


def test_a_study_that_begins_after_the_page_was_opened_appears_in_its_list(finished, tmp_path, serve):
    shutil.copytree(finished, tmp_path / "first")
    with serve(tmp_path) as client, opened(client.server.url) as driver:
        until(driver, lambda d: text(d, "#selected"))
        assert not driver.find_element(By.ID, "study").is_displayed()
        shutil.copytree(finished, tmp_path / "second")
        until(driver, lambda d: d.find_element(By.ID, "study").is_displayed())
        chooser = Select(driver.find_element(By.ID, "study"))
        assert [one.text.rpartition("/")[2] for one in chooser.options] == ["first), done", "second), done"]
        assert chooser.first_selected_option.text.endswith("first), done")
        go(driver, "compare")
        until(driver, lambda d: "on the front of both together" in text(d, "#view"))
        chooser.select_by_index(1)
        until(driver, lambda d: d.find_element(By.ID, "other").text.endswith("first"))
        assert not complaints(driver)


def test_names_of_an_attacker_stay_text(client):
    with opened(client.server.url) as driver:
        until(driver, lambda d: text(d, "#selected"))
        for tab, words in {"genes": "Slices through", "front": "<img src=x onerror"}.items():
            go(driver, tab)
            until(driver, lambda d, words=words: words in text(d, "#view"))
        assert not driver.find_elements(By.TAG_NAME, "img")
        assert driver.title == "view: evomerge"


def test_a_point_tells_its_recipe_and_is_selected_with_the_keyboard(client):
    with opened(client.server.url) as driver:
        until(driver, lambda d: text(d, "#selected"))
        plot = driver.find_element(By.CSS_SELECTOR, ".plot")
        plot.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        until(driver, lambda d: text(d, ".tip pre"))
        name = text(driver, ".tip strong")
        plot.send_keys(Keys.ENTER)
        until(driver, lambda d: text(d, "#selected").startswith(name.partition(" = ")[0]))


def test_tabs_follow_the_arrow_keys_and_every_control_has_a_label(client):
    with opened(client.server.url) as driver:
        until(driver, lambda d: text(d, "#selected"))
        driver.find_element(By.ID, "tab-front").send_keys(Keys.ARROW_RIGHT)
        until(driver, lambda d: "Hypervolume" in text(d, "#view"))
        assert driver.switch_to.active_element.get_attribute("id") == "tab-progress"
        for tab in ("front", "preferences"):
            go(driver, tab)
            until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#view select"))
            bare = driver.execute_script(
                "return [...document.querySelectorAll('#view select, #view input')].filter((one) => !one.labels.length && !one.ariaLabel).length"
            )
            assert bare == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_sideways_scroll_and_text_has_contrast(client, scheme):
    with opened(client.server.url, 390, 844, scheme) as driver:
        until(driver, lambda d: text(d, "#selected"))
        for tab in ("front", "progress", "preferences"):
            go(driver, tab)
            until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#view table"))
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        colours = driver.execute_script(
            "const style = getComputedStyle(document.documentElement); return Object.fromEntries(arguments[0].map((name) => [name, style.getPropertyValue('--' + name).trim()]))",
            ["paper", "raised", "ink", "muted", "front", "picked", "expert", "reference", "other", "base", "dot"],
        )
    assert (luminance(colours["paper"]) < 0.1) == (scheme == "dark")
    for name in ("ink", "muted", "front"):  # WCAG 2.2, 1.4.3: text
        assert all(contrast(colours[name], colours[back]) >= 4.5 for back in ("paper", "raised")), name
    for name in ("picked", "expert", "reference", "other", "base"):  # 1.4.11: what a picture means
        assert contrast(colours[name], colours["paper"]) >= 3, name


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_ten_thousand_candidates_do_not_lag(client, monkeypatch):
    real, drawn = client.data(what="search", study=0), random.Random(0)
    size = 10_000
    known = len(real["rows"])
    rows = [*real["rows"], *([i, [drawn.random() * 0.3, drawn.random() * 0.3], None] for i in range(known, size))]
    answer = client.server.data

    def data(query):
        if query["what"] != "search":
            return answer(query)
        since = int(query["since"])
        return {**real, "first": since, "rows": rows[since:]}

    monkeypatch.setattr(client.server, "data", data)
    with opened(client.server.url) as driver:
        until(driver, lambda d: count(d) == size and text(d, "#selected"))
        milliseconds = driver.execute_async_script(
            """
            const done = arguments[0], over = document.querySelector(".u-over"), box = over.getBoundingClientRect(), times = [];
            let i = 0;
            const step = () => {
              const start = performance.now();
              over.dispatchEvent(new MouseEvent("mousemove", { bubbles: true, clientX: box.left + 40 + 7 * i, clientY: box.top + 200 + 3 * i }));
              requestAnimationFrame(() => setTimeout(() => {
                times.push(performance.now() - start);
                if (++i < 30) step(); else done(times);
              }));
            };
            step();
            """
        )
    assert sorted(milliseconds)[len(milliseconds) // 2] < 100, sorted(milliseconds)


def test_the_page_as_a_file_shows_the_same_without_a_server(finished, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(frozen.save(finished), encoding="utf-8")
    with opened(file.as_uri()) as driver:
        until(driver, lambda d: "of 12" in text(d, "#state"))
        assert text(driver, "#report .choice").startswith("Picked: ")
        assert not driver.find_element(By.ID, "view").is_displayed()
        go(driver, "front")
        until(driver, lambda d: text(d, "#selected"))
        assert not driver.find_element(By.ID, "report").is_displayed()
        for tab, words in {"progress": "Hypervolume", "genes": "Slices through"}.items():
            go(driver, tab)
            until(driver, lambda d, words=words: words in text(d, "#view"))
        assert not driver.find_elements(By.CSS_SELECTOR, "#tab-preferences, #tab-population")
        assert not complaints(driver)


def test_the_report_is_read_without_scripts_and_on_a_phone(finished):
    page = (finished / "report.html").as_uri()
    with opened("about:blank", 390, 844, "dark") as driver:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        driver.get(page)
        said = text(driver, "body")
        for words in ("view", "Picked: ", "Scores on unseen examples", f"expert {EVIL}", "Digest of all proposals"):
            assert words in said
        assert len(driver.find_elements(By.TAG_NAME, "img")) == 2
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        driver.get(page)
        until(driver, lambda d: text(d, "#state"))
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert driver.title == "view: evomerge"
        assert not complaints(driver)

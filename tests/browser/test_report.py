"""The report in headless Chromium: no error, no request, every picture on screen, nothing wider than the window."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from diffkit.report import ReportInputs, build_report
from diffkit.runs.results import MetricResult

from ..hostile_texts import ATTACKS, pages

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

VIEWS = [(1400, "light"), (375, "light"), (1400, "dark"), (375, "dark")]
PICTURES = """[...document.querySelectorAll('img')].map((one) => {
  const box = one.getBoundingClientRect();
  const loaded = one.complete && one.naturalWidth > 0;
  return [loaded, box.width > 0 && box.height > 0, box.right <= innerWidth + 1, one.alt !== ''];
})"""
CHARTS = """[...document.querySelectorAll('svg[role=img]')].map((one) => {
  const box = one.getBoundingClientRect();
  return [box.width > 0 && box.height > 0, box.left >= 0 && box.right <= innerWidth + 1];
})"""
# Contrast of each text against the first opaque background behind it, as WCAG 2 defines it.
FAINT = """(() => {
  const light = (css) => {
    const [r, g, b] = css.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const css = getComputedStyle(at).backgroundColor;
      if (css !== 'rgba(0, 0, 0, 0)') return css;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = [];
  for (const one of document.querySelectorAll('body *:not(title, script)')) {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(one instanceof SVGElement ? style.fill : style.color), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push([one.tagName, one.textContent.slice(0, 30), ratio]);
  }
  return faint;
})()"""


@pytest.fixture(scope="module", params=["images", "points"])
def address(request: pytest.FixtureRequest, write_report: Callable[[str], str]) -> str:
    return write_report(request.param)


def complaints(browser) -> list[object]:
    """Everything that a console would show in red."""
    found: list[object] = []
    for event in browser.events:
        params = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            found.append(params["exceptionDetails"])
        elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            found.append(params["args"])
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            found.append(params["entry"])
    return found


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_report_opens_whole(chromium, address, width, scheme):
    chromium.open(address, width, scheme=scheme)
    chromium.run("window.scrollTo(0, document.body.scrollHeight)")

    assert complaints(chromium) == []
    requests = [e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [address]

    pictures = chromium.run(PICTURES)
    assert len(pictures) == (18 if "images" in address else 0)
    assert all(all(one) for one in pictures)
    charts = chromium.run(CHARTS)
    assert len(charts) >= 6
    assert all(all(one) for one in charts)

    assert chromium.run("innerWidth") == width
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run(FAINT) == []


def test_dark_and_light_differ_and_paper_is_light(chromium, address):
    page = "getComputedStyle(document.body).backgroundColor"
    chromium.open(address, 1400)
    light = chromium.run(page)
    chromium.open(address, 1400, scheme="dark")
    assert chromium.run(page) != light
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert chromium.run("getComputedStyle(document.body).color") == "rgb(28, 32, 38)"
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    chromium.call("Emulation.setEmulatedMedia", media="", features=[])


def test_pointing_at_a_chart_shows_its_values(chromium, address):
    chromium.open(address, 1400)
    x, y, width = chromium.run(
        """(() => {
          const one = document.querySelector('#training svg');
          one.scrollIntoView({block: 'center', behavior: 'instant'});
          const box = one.getBoundingClientRect();
          return [box.x, box.y + box.height / 2, box.width];
        })()"""
    )
    shown = "[...document.querySelectorAll('#training .tip')].filter((one) => !one.hidden).map((one) => one.innerText)"
    assert chromium.run(shown) == []
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 466 / 480 * width, y=y)
    (text,) = chromium.run(shown)
    lines = text.split("\n")
    assert lines[0] == "step 40"
    assert [line.split()[0] for line in lines[1:]] == ["Training", "Held-out,", "Held-out,"]
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert chromium.run(shown) == []


def test_the_recipe_can_be_copied(chromium, write_report, real_inputs):
    address = write_report("points")
    chromium.open(address, 1400)
    chromium.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    chromium.call("Emulation.setFocusEmulationEnabled", enabled=True)
    chromium.run("document.querySelector('[data-copy]').click()")
    chromium.run("new Promise((done) => setTimeout(done, 200))")
    assert chromium.run("document.querySelector('[data-copy]').textContent") == "Copied"
    assert chromium.run("navigator.clipboard.readText()") == real_inputs["points"].recipe_yaml


def test_hostile_texts_neither_run_nor_break_the_layout(chromium, real_inputs, tmp_path: Path):
    attack = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>" + "w" * 200
    inputs = dataclasses.replace(
        real_inputs["images"],
        title=attack,
        data_name=attack,
        recipe_yaml=attack,
        environment={attack: attack},
        events=[{"event": attack, "time": attack}],
        results={attack: MetricResult(headline=attack, values={attack: 1.0}, definition=attack)},
        stage_seconds={attack: 1.0},
    )
    path = tmp_path / "report.html"
    path.write_text(build_report(inputs), encoding="utf-8")
    for width in (1400, 375):
        chromium.open(path.as_uri(), width)
        assert chromium.run("window.hit === undefined")
        assert complaints(chromium) == []
        assert chromium.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_in_any_text_runs(chromium, tmp_path: Path, attack: str):
    for name, page in zip(("report", "comparison"), pages(attack), strict=True):
        path = tmp_path / f"{name}.html"
        path.write_text(page, encoding="utf-8")
        chromium.open(path.as_uri(), 1400)
        assert chromium.run("window.hit === undefined")
        assert chromium.run("location.href") == path.as_uri()
        requests = [
            e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


def test_the_policy_stops_markup_that_slipped_in(chromium, tmp_path: Path):
    page = build_report(ReportInputs())
    extra = "<script>window.hit = 1</script><img src='https://example.invalid/x.png' onerror='window.hit = 1'>"
    path = tmp_path / "report.html"
    path.write_text(page.replace("</main>", f"{extra}</main>"), encoding="utf-8")
    chromium.open(path.as_uri(), 1400)
    assert chromium.run("window.hit === undefined")
    answered = [e for e in chromium.events if e["method"] == "Network.responseReceived"]
    assert [e["params"]["response"]["url"] for e in answered if "example" in e["params"]["response"]["url"]] == []
    assert complaints(chromium), "the browser names what it refused"

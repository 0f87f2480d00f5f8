"""The report in a real browser: it draws, loads nothing, and fits a phone, in light and dark."""

import pytest
import run_directory
from browser_pages import chromium, needs_chromium

from distllm.commands.report import run

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of one run, and that of two side by side."""
    root = tmp_path_factory.mktemp("reports")
    run_directory.write_run(root / "runs", "storm")
    run_directory.write_run(root / "runs", "calm", lr=3e-4, skipped=())
    for name, runs in (("one", "storm"), ("two", "storm,calm")):
        assert run([f"run={runs}", f"runs_dir={root / 'runs'}", f"out={root / name}.html"]) == 0
    return root


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def opened(browser, path, *, width=1280, scheme="light"):
    """Open a page; every request beside the page itself, and every error, is noted on it."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.noted = []
    page.on("console", lambda message: page.noted.append(message.text))
    page.on("pageerror", lambda error: page.noted.append(str(error)))
    page.on("request", lambda request: page.noted.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#chart-loss path")
    assert page.noted == [path.as_uri()]
    return page


def shown(page):
    return page.locator("#charts figure:not([hidden])")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_are_drawn_in_the_colours_of_the_scheme(browser, pages, scheme):
    page = opened(browser, pages / "one.html", scheme=scheme)
    assert shown(page).count() == 9  # the eight of every run, and bits per byte
    assert page.locator("#chart-loss path.step").get_attribute("d").count("M") == 2  # a gap at the skip
    assert page.locator("#chart-lr path.step").get_attribute("d").count("M") == 1
    assert page.locator("#chart-loss line.skip").count() == 1
    assert page.locator("#chart-loss circle").count() == 4
    shares = page.evaluate("[0, 0.0312, 0.5, 1, 1.5, 20].map(format.percent)")
    assert shares == ["0%", "3.12%", "50%", "100%", "150%", "2000%"]
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(brightness) > 600) == (scheme == "light")
    page.click("#theme")
    switched = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(switched) > 600) == (scheme == "dark")


def test_pointing_at_one_curve_reads_all_of_them(browser, pages):
    page = opened(browser, pages / "one.html")
    last = page.locator("#chart-loss output").inner_text()
    box = page.locator("#chart-grad_norm .chart").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    assert page.locator("#chart-loss output").inner_text() != last
    assert page.locator("#chart-mfu line.cross").get_attribute("visibility") == "visible"


def test_axis_smoothing_and_logarithm_change_the_drawing(browser, pages):
    page = opened(browser, pages / "one.html")

    def drawing():
        return page.locator("#chart-loss svg").inner_html()

    seen = {drawing()}
    page.select_option("#axis", "tokens")
    assert "20k" in page.locator("#chart-loss svg").text_content()
    seen.add(drawing())
    page.locator("#smooth").fill("0.9")
    assert page.locator("#chart-loss path.raw").count() == 1
    seen.add(drawing())
    page.check("#log")
    seen.add(drawing())
    assert len(seen) == 4


def test_two_runs_share_the_curves_and_one_can_be_hidden(browser, pages):
    page = opened(browser, pages / "two.html")
    assert page.locator("#chart-loss path.step").count() == 2
    page.click("[data-run='1']")
    assert page.locator("#chart-loss path.step").count() == 1
    assert page.locator("[data-run='1']").get_attribute("aria-pressed") == "false"


def test_configuration_can_be_searched(browser, pages):
    page = opened(browser, pages / "one.html")
    page.click("#configuration summary")
    page.locator("#configuration input").fill("OPTIM")
    rows = page.locator("#configuration tbody tr:visible")
    assert rows.count() == 1
    assert "optim.lr=0.001" in rows.inner_text()


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_phone_needs_no_sideways_scrolling(browser, pages, name):
    page = opened(browser, pages / f"{name}.html", width=375, scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    widths = page.evaluate("[...document.querySelectorAll('.chart svg')].map(x => x.clientWidth)")
    assert min(widths) > 250
    sizes = page.evaluate(
        "[...document.querySelectorAll('.chart text')].map(x => parseFloat(getComputedStyle(x).fontSize))"
    )
    assert min(sizes) >= 11

"""A headless Chromium of the machine, for tests of pages; they skip with the reason where there is none."""

import shutil
from contextlib import contextmanager

import pytest

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs the program chromium (apt-get install chromium)"
)


@contextmanager
def chromium():
    """Yield a browser; a fresh profile, nothing but the pages it is told to open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()

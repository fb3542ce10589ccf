"""The server's page in a browser: it fits, all text is read, and what it writes is coloured by module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.browser import CONTRASTS, Browser, open_browser
from tests.compose.published import MODULES
from tests.reports.test_page_access import READABLE
from tests.serving.test_process import Process, lab, server  # noqa: F401

pytestmark = pytest.mark.slow
LOADED = "new Promise(done => { const look = () => modules.length ? done() : setTimeout(look, 20); look(); })"
WRITTEN = """new Promise(done => {
  document.getElementById('form').requestSubmit();
  const look = () => document.getElementById('cost').textContent ? done() : setTimeout(look, 20); look(); })"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def test_it_fits_and_all_text_is_read(browser: Browser, server: Process) -> None:  # noqa: F811
    for width, scheme in itertools.product((1400, 800, 400), ("light", "dark")):
        browser.show(server.url, width, scheme)
        browser.run(LOADED)
        browser.run(WRITTEN)
        assert browser.run("document.documentElement.scrollWidth") <= width
        faint = [text for text, contrast in browser.run(CONTRASTS) if contrast < READABLE]
        assert not faint, (width, scheme, faint)


def test_it_writes_and_says_whose_modules_worked(browser: Browser, server: Process) -> None:  # noqa: F811
    browser.show(server.url, 800, "light")
    browser.run(LOADED)
    listed = browser.run("[...document.querySelectorAll('#modules tr')].map(row => row.cells[0].textContent)")
    assert [name.split("@")[0] for name in listed] == list(MODULES)
    browser.run("document.getElementById('max').value = 20")
    browser.run(WRITTEN)
    said = browser.run("[...document.querySelectorAll('#text span')].map(span => span.title)")
    assert len(said) <= 20
    assert all("multiply-adds" in title for title in said)
    used = sum(name in title for title in said for name in MODULES)
    counted = browser.run("modules.reduce((sum, one) => sum + one.tokens, 0)")
    assert counted == used > 0
    assert "multiply-adds in the routed layers" in browser.run("document.getElementById('cost').textContent")
    browser.run("document.getElementById('max').value = 5000")
    browser.run("document.getElementById('cost').textContent = ''")
    browser.run(WRITTEN)
    assert "there is room for 128" in browser.run("document.getElementById('cost').textContent")


def test_labels_name_what_is_typed_in(browser: Browser, server: Process) -> None:  # noqa: F811
    browser.show(server.url, 800, "light")
    unnamed = browser.run("[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).length")
    assert unnamed == 0

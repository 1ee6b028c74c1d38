"""The local page, clicked through in a real Chromium: publish, see it counted, a dead letter, a runbook."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kgents_devstack.page import PageServer
from kgents_devstack.servers.process import free_port
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions

from .browser import Browser

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ROWS = "document.querySelectorAll('#services tbody tr').length"
# Text against its own background, as WCAG 2 computes it.
CONTRASTS = """
(() => {
  const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(part)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = getComputedStyle(e).backgroundColor;
      if (!found.endsWith(', 0)')) return found;
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = 'h1,h2,p,dt,dd,td,th,label,button,small,a,caption,li';
  return [...document.querySelectorAll(texts)].filter((e) => e.innerText).map((e) => {
    const a = light(getComputedStyle(e).color), b = light(behind(e));
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.innerText.slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
})()
"""

# Words at the head of a column or a row that take more than one line box.
BROKEN_WORDS = """
[...document.querySelectorAll('th, td:first-child')].flatMap((th) => {
  const found = [], text = document.createTreeWalker(th, NodeFilter.SHOW_TEXT);
  for (let node; (node = text.nextNode());) for (const word of node.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1) found.push(word[0]);
  }
  return found;
})
"""

TOO_WIDE = """
[...document.querySelectorAll('section table')].filter((table) => {
  const card = table.closest('section'), right = parseFloat(getComputedStyle(card).paddingRight);
  return table.getBoundingClientRect().right > card.getBoundingClientRect().right - right + 1;
}).map((table) => table.id)
"""


@pytest.fixture(scope="module")
def page() -> Iterator[PageServer]:
    """A page that shows a running stack."""
    directory = Path(tempfile.mkdtemp(prefix="kgents-page-"))
    with PageServer(free_port()) as server:
        options = StackOptions(services=EVERYTHING, environment=server.traced({}, EVERYTHING))
        with Stack(directory, options) as stack:
            server.show(stack)
            yield server
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def browser(page: PageServer, tmp_path: Path) -> Iterator[Browser]:
    """At the page, with everything on it."""
    with Browser(tmp_path / "profile") as one:
        one.look(width=1400, height=1000)
        one.open(page.url)
        one.until(f"{ROWS} === {len(EVERYTHING)}")
        one.until("document.querySelector('#usage-plot path') !== null")
        yield one
        assert one.errors == []


def test_an_event_is_published_and_its_way_is_seen(browser: Browser) -> None:
    """Rule: receipt, counted, delivered, its trace through three steps; the same again is a repeat."""
    browser.run("document.querySelector('#form button[type=submit]').click()")
    browser.until("document.querySelector('#way').innerText.includes('Delivered: OpenMeter has it')")
    told = browser.run("document.querySelector('#way').innerText")
    assert "Receipt: durable in AGENTESE" in told
    assert "Counted: in the ledger" in told
    browser.until("document.querySelector('#trace').innerText.includes('metering deliver')")
    trace = browser.run("document.querySelector('#trace').innerText")
    assert "POST /v1/events" in trace
    assert "metering apply" in trace
    browser.until("document.querySelector('#event').innerText.includes('llm.tokens acme page-')")
    browser.run("document.querySelector('#again').click()")
    browser.until("document.querySelector('#way').innerText.includes('a repeat, so it counts once')")
    browser.until("document.querySelector('#usage-plot svg').getAttribute('aria-label').includes('acme 42')")


def test_a_refusal_says_why(browser: Browser) -> None:
    """Rule: what the door says of a wrong field is shown; data that is no JSON never leaves the page."""
    browser.run("document.querySelector('#type').value = 'billing.mine'")
    browser.run("document.querySelector('#form button[type=submit]').click()")
    browser.until("document.querySelector('#way').innerText.includes('Refused with 400: type')")
    browser.run("document.querySelector('#data').value = '{'")
    browser.run("document.querySelector('#form button[type=submit]').click()")
    browser.until("document.querySelector('#way').innerText.includes('the data is no JSON')")
    assert browser.run("document.activeElement.id") == "data"


def test_a_dead_letter_is_seen_and_leads_to_its_runbook(browser: Browser) -> None:
    """Rule: from garbage to the section that says what to do."""
    browser.run("document.querySelector('#garbage').click()")
    browser.until("document.querySelector('#dead').innerText.includes('metering')")
    browser.until("document.querySelector('#decide a') !== null")
    browser.run("document.querySelector('#decide a').click()")
    browser.until("location.pathname === '/runbooks/metering' && location.hash === '#meteringdeadletters'")
    browser.until("document.querySelector('#meteringdeadletters') !== null")
    assert "kgents-metering dead list" in browser.run("document.body.innerText")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_and_can_be_read(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    """Rule: no sideways scrolling, and a contrast of at least 4.5 everywhere."""
    browser.look(width=width, height=900, dark=dark)
    browser.until(f"window.innerWidth === {width}")
    browser.picture(tmp_path / "page.png")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(CONTRASTS) == []


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_a_table_fits_and_breaks_no_word_of_its_headings(browser: Browser, width: int) -> None:
    """Rule: a word stands on one line, and no table leaves its card."""
    browser.look(width=width, height=900)
    browser.until(f"window.innerWidth === {width}")
    assert browser.run(BROKEN_WORDS) == []
    assert browser.run(TOO_WIDE) == []


@pytest.mark.parametrize("width", [390, 1400])
def test_the_messages_are_a_page(browser: Browser, page: PageServer, width: int) -> None:
    """Rule: the document of both streams is one click away, needs nothing from elsewhere, and fits."""
    assert browser.run("[...document.querySelectorAll('#links a')].map((a) => a.pathname)").count(
        "/docs/messages"
    )
    browser.look(width=width, height=900)
    browser.open(f"{page.url}/docs/messages#deadletters")
    browser.until("document.querySelector('#deadletters') !== null")
    assert "agentese.{tenant}.{type}" in browser.run("document.body.innerText")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(CONTRASTS) == []
    assert httpx.get(f"{page.url}/docs/asyncapi.json").json()["asyncapi"].startswith("3.")
    links = browser.run("[...document.querySelectorAll('main a[href]')].map((a) => a.href)")
    inside = {link.partition("#")[2] for link in links if link.startswith(f"{page.url}/docs/messages#")}
    missing = [name for name in inside if not browser.run(f"document.getElementById('{name}') !== null")]
    assert not missing


def test_keyboard_and_screen_reader(browser: Browser) -> None:
    """Rule: a way past the rest to the form, each field and plot with a name, an event without a mouse."""
    browser.key("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.key("Enter", text="\r")
    reached = []
    for _ in range(8):
        browser.key("Tab")
        reached.append(browser.run("document.activeElement.id || document.activeElement.innerText"))
    assert reached[:5] == ["tenant", "type", "id", "data", "Publish"]
    browser.run("document.querySelector('#form button[type=submit]').focus()")
    browser.key("Enter", text="\r")
    browser.until("document.querySelector('#way').innerText.includes('Counted')")
    met = browser.accessible()
    names = dict.fromkeys(met)
    for expected in [
        ("combobox", "Tenant"),
        ("textbox", "Id"),
        ("table", "Services"),
        ("heading", "What flows"),
    ]:
        assert expected in names
    pictures = [name for role, name in met if role in ("image", "img")]
    assert len(pictures) >= 3
    assert all("Now:" in name for name in pictures)
    assert all(name for role, name in met if role in ("button", "link", "combobox", "textbox"))


def test_another_site_gets_nothing(page: PageServer) -> None:
    """Rule: neither a foreign origin nor a foreign name for this machine reads or writes."""
    assert httpx.get(f"{page.url}/state").status_code == 200
    assert httpx.get(f"{page.url}/state", headers={"host": "evil.example"}).status_code == 403
    foreign = httpx.post(f"{page.url}/garbage", headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert "kg_" not in httpx.get(f"{page.url}/state").text

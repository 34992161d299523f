"""The page of a run in a real browser: alone, narrow, dark, and where nobody lets it have styles.

It looks at the golden page, which tests/reporters holds to be what the reporter writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, browser

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install it)"),
]

GOLDEN = Path(__file__).parents[1] / "reporters" / "golden" / "page.html"
POLICY = "default-src 'none'; img-src 'self'; style-src 'self'"  # Jenkins, unless told otherwise
SAID = (
    "FAILED synthetic", "degrade", "fault:outage", "Survival matrix", "network.down", "p99.9",
    "send lag", "sha256 of plan.json",
)  # fmt: skip

# Each element that shows text of its own: its contrast with the page, and what it says.
CONTRASTS = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const page = numbers(getComputedStyle(document.body).backgroundColor);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = (element) => {
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    let opacity = svg ? Number(style.fillOpacity) : 1;
    for (let at = element; at instanceof Element; at = at.parentElement)
      opacity *= Number(getComputedStyle(at).opacity);
    const ink = numbers(svg ? style.fill : style.color).slice(0, 3);
    return ink.map((v, k) => v * opacity + page[k] * (1 - opacity));
  };
  const own = (element) => [...element.childNodes]
    .filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
  return [...document.body.querySelectorAll("*")]
    .filter((element) => own(element) && !["title", "desc"].includes(element.tagName)
      && /[\\p{L}\\p{N}]/u.test(own(element)))
    .map((element) => {
      const pair = [light(seen(element)), light(page.slice(0, 3))].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), own(element)];
    });
})()
"""
SIZES = """[...document.querySelectorAll("svg[role=img]")].map((svg) => {
  const box = svg.getBoundingClientRect();
  return [Math.round(box.height), Math.round(svg.getBBox().width) > 0 && box.width > 200];
})"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tmp_path):
    """A copy with nothing beside it."""
    return Path(shutil.copy(GOLDEN, tmp_path / "report.html"))


def test_it_stands_alone_and_says_everything_without_a_script(shown, page):
    shown.show(page, 1200)
    asked = [event["request"]["url"] for event in shown.named("Network.requestWillBeSent")]
    assert asked == [page.as_uri()]
    assert shown.named("Log.entryAdded") == []
    assert shown.value("document.scripts.length") == 0
    text = shown.value("document.body.innerText")
    assert [said for said in SAID if said not in text] == []
    assert all(drawn for _, drawn in shown.value(SIZES))


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_nothing_sticks_out_sideways(shown, page, width):
    shown.show(page, width)
    assert shown.value("document.documentElement.scrollWidth") <= width
    wide = shown.value(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.wide') && "
        "!e.closest('svg svg') && e.getBoundingClientRect().right > innerWidth + 1 "
        "&& !['text', 'tspan'].includes(e.tagName)).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


@pytest.mark.parametrize("dark", [False, True])
def test_letters_can_be_read_in_light_and_dark(shown, page, dark):
    shown.show(page, 1200, dark=dark)
    background = shown.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 120) is dark
    contrasts = shown.value(CONTRASTS)
    assert len(contrasts) > 150
    assert [said for contrast, said in contrasts if contrast < 4.5] == []


def test_where_styles_are_forbidden_nothing_is_lost(shown, page):
    shown.show(page, 1200)
    text, sizes = shown.value("document.body.innerText"), shown.value(SIZES)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{policy}", 1))
    shown.show(page, 1200)
    assert "style" in shown.named("Log.entryAdded")[0]["entry"]["text"]  # it was refused
    assert shown.value("getComputedStyle(document.body).fontFamily.includes('system-ui')") is False
    assert shown.value("document.body.innerText").split() == text.split()
    assert shown.value(SIZES) == sizes
    borders = shown.value("[...document.querySelectorAll('table')].every((t) => t.border === '1')")
    assert borders is True

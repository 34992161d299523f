"""Shapes of the page: paths that say just what was given, and colours that can be seen."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporter_fakes import module

svg = module("svg")
markup = module("markup")


def walked(path: str) -> list[tuple[int, int]]:
    """Every point that a path of M, l, h, v goes through."""
    x = y = 0
    points = []
    for letter, numbers in re.findall(r"([Mlhv])([-\d ]+)", path):
        first, *rest = map(int, re.findall(r"-?\d+", numbers))
        if letter == "M":
            x, y = first, rest[0]
        else:
            x += first if letter in "lh" else 0
            y += rest[0] if letter == "l" else first if letter == "v" else 0
        points.append((x, y))
    return points


heights = st.lists(st.one_of(st.none(), st.integers(0, 90)), min_size=1, max_size=40)


@given(heights)
def test_steps_are_level_over_their_columns_and_leave_gaps(values):
    edges = [7 * at for at in range(len(values) + 1)]
    path = svg.steps(edges, values)
    level = {}
    last = None
    for letter, point in zip(re.findall(r"[Mhv]", path), walked(path), strict=True):
        if letter == "h":
            for x in range(last[0], point[0], 7):
                level[x // 7] = point[1]
        last = point
    assert level == {at: value for at, value in enumerate(values) if value is not None}


@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 200)), max_size=30))
def test_a_curve_goes_through_its_points(points):
    found = walked(svg.curve(points))
    kept = [p for at, p in enumerate(points) if at == 0 or p != points[at - 1]]
    assert found == kept


@given(
    st.integers(1, 6).flatmap(
        lambda rows: st.lists(
            st.lists(st.integers(0, 3), min_size=rows, max_size=rows), min_size=1, max_size=12
        )
    )
)
def test_heat_covers_each_cell_once_with_its_level(levels):
    edges = [5 * at for at in range(len(levels) + 1)]
    drawn = svg.heat(edges, levels, 4, svg.BLUE, (0.2, 0.5, 1))
    cells = {}
    for d, opacity in re.findall(r'd="([^"]+)" stroke-opacity="([\d.]+)"', drawn):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)", d):
            for left in range(int(x), int(x) + int(width), 5):
                place = (left // 5, len(levels[0]) - 1 - (int(y) - 2) // 4)
                assert place not in cells
                cells[place] = {0.2: 1, 0.5: 2, 1: 3}[float(opacity)]
    wanted = {
        (column, row): level
        for column, values in enumerate(levels)
        for row, level in enumerate(values)
        if level
    }
    assert cells == wanted


@pytest.mark.parametrize("scale", [svg.Linear(0, 70, 80), svg.Log(3, 900, 120)])
def test_scales_go_up_and_stay_in_their_plot(scale):
    assert (scale(scale.low), scale(scale.high)) == (scale.height, 0)
    assert scale(scale.high * 10) == 0
    ticks = scale.ticks()
    assert ticks == sorted(ticks) and len(ticks) >= 2
    assert all(scale.low <= tick <= scale.high for tick in ticks)


@given(st.floats(1e-6, 1e9), st.floats(1.001, 1e4))
def test_ticks_are_few_whatever_is_shown(low, factor):
    assert len(svg.Log(low, low * factor, 128).ticks()) <= 12
    assert len(svg.Linear(low, low * factor, 64).ticks()) <= 6


def test_labels_never_stand_on_each_other():
    scale = svg.Log(1, 90, 20)
    lines = list(svg.gridlines(scale, 0, [str(v) for v in scale.ticks()]))
    at = [int(y) for y in re.findall(r'<text x="[^"]*" y="(\d+)"', "".join(lines))]
    assert len(scale.ticks()) > len(at) >= 1
    assert all(a - b >= svg.SMALL for a, b in itertools.pairwise(at))


def light(colour: str) -> float:
    """Relative luminance, as WCAG has it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else math.pow((p + 0.055) / 1.055, 2.4) for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", [*svg.FAULTS, svg.BLUE, svg.GREEN, svg.RED, svg.ORANGE])
@pytest.mark.parametrize("page", ["#ffffff", "#121212"])
def test_every_colour_is_seen_on_white_and_on_black(colour, page):
    pair = sorted((light(colour), light(page)))
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3


def test_text_is_escaped_wherever_it_stands():
    evil = '<script>"&\x1b'
    said = markup.tag("b", evil, title=evil, left_out=None)
    assert said == '<b title="&lt;script&gt;&quot;&amp;?">&lt;script&gt;&quot;&amp;?</b>'
    assert markup.tag("p", said, stroke_width=2) == f'<p stroke-width="2">{said}</p>'

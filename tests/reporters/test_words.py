"""Numbers in words: short, with units, and never rounded on to the wrong side of a limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporter_fakes import module

words = module("words")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (412.34, "412"),
        (1234.5, "1,230"),
        (0.0614, "0.0614"),
        (0.00001, "<0.0001"),
        (2.0, "2"),
        (9.996, "10"),
        (123456789.0, "123,000,000"),
        (-0.25, "-0.25"),
    ],
)
def test_digits(value, shown):
    assert words.digits(value) == shown


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (800.0, 800.0, "800 ms"),
        (800.4, 800.0, "800.4 ms"),
        (799.96, 800.0, "799.96 ms"),
        (3_600_000.0, 800.0, "3,600 s"),
        (12_345.0, 800.0, "12.3 s"),
        (0.042, None, "0.042 ms"),
    ],
)
def test_milliseconds_never_show_the_limit_unless_they_are_the_limit(value, limit, shown):
    assert words.milliseconds(value, limit) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.99712, "99.71 %"),
        (0.9999996, "99.99996 %"),
        (0.29, "29 %"),
        (1e-9, "<0.0001 %"),
    ],
)
def test_a_share_claims_all_or_nothing_only_if_exact(value, shown):
    assert words.share(value) == shown


@given(st.floats(0, 1), st.floats(0, 1))
def test_two_different_shares_never_look_alike_beside_a_limit(value, limit):
    shown = words.share(value, limit)
    if abs(value - limit) > 1e-7 and value > 1e-5 and limit > 1e-5:
        assert float(shown.removesuffix(" %").replace(",", "").lstrip("<")) != limit * 100


@given(st.floats(0, 1e12, allow_nan=False))
def test_digits_are_near_the_value_and_never_an_exponent(value):
    shown = words.digits(value)
    assert "e" not in shown
    if value >= 1e-4:
        assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("low", "high", "unit", "shown"),
    [
        (0.9963, 0.9977, "share", "99.63..99.77"),
        (0.926, 1.0, "share", "92.60..100"),
        (0.0, 0.999999, "share", "0..99.9999"),
        (398.2, 431.9, "ms", "398..432"),
        (1240.0, "inf", "ms", "1,240..inf"),
        (9_000.0, 61_000.0, "ms", "9..61 s"),
        (None, None, "s", ""),
    ],
)
def test_interval(low, high, unit, shown):
    assert words.interval(low, high, unit) == shown


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0, "0s"),
        (8_500_000, "8.5s"),
        (59_960_000, "1m00s"),
        (84_412_000, "1m24s"),
        (86_400_000_000, "24h00m00s"),
    ],
)
def test_span(us, shown):
    assert words.span(us) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "ms", "-"),
        ("inf", "ms", "inf"),
        (float("inf"), "ms", "inf"),
        (4.0, "s", "4 s"),
        (0.5, "share", "50 %"),
    ],
)
def test_quantity(value, unit, shown):
    assert words.quantity(value, unit) == shown

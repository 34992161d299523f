"""What ``survive calibrate`` prints."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from survive.errors import ExitCode
from survive.load.calibration import FLOOR_MS, LANES, TOLERANCE, Calibration, calibrate
from survive.load.known import MODES


def show_calibration(rate: int, seconds: int, form: str, *, unix: bool) -> ExitCode:
    """Run and print them all. Exit 3 if a percentile is off: this machine cannot be trusted now."""
    done: list[Calibration] = []
    if form == "human":
        click.echo(f"{rate}/s for {seconds} s each, {LANES} lanes; truth / measured in ms\n")
    for mode in MODES:
        found = calibrate(mode, rate=rate, seconds=seconds, unix=unix)
        done.append(found)
        if form == "human":
            _print(found)
    sound = all(one.sound for one in done)
    if form == "json":
        click.echo(json.dumps([{**asdict(one), "sound": one.sound} for one in done], indent=1))
    else:
        floor = next(p.measured_ms for p in done[0].points if p.percentile == 50)
        where = "a Unix socket" if unix else "loopback"
        click.echo(f"\nfloor on {where}: {floor * 1000:.0f} µs p50; below it nothing can be told")
        click.echo(
            f"every percentile within {TOLERANCE:.0%} (or {FLOOR_MS} ms) of the truth"
            if sound
            else "NOT within 1 % everywhere: this machine was too busy to measure on"
        )
    return ExitCode.SURVIVED if sound else ExitCode.INCONCLUSIVE


def _print(found: Calibration) -> None:
    click.echo(f"{found.mode:<12} {found.series}, n {found.n:,}")
    for point in found.points:
        off = "" if point.sound else "   off"
        click.echo(
            f"  p{point.percentile:<5g} {point.true_ms:10.3f} {point.measured_ms:10.3f}"
            f"  {point.error:+8.2%}{off}"
        )
    click.echo(f"  send lag p99 {found.send_lag_p99_ms:.3f} ms")

"""``compare(base, new)``: are these runs worse than those? Cell by cell; pure.

One episode tells how it went, not how such episodes go: a difference is judged only between three
or more a side (DESIGN law 6; `survive.judge.between` has the test). Values are compared, not
verdicts, so a cell that survives with less to spare is seen, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from survive.errors import RecordError
from survive.judge.changes import Asked, changes_of
from survive.judge.comparison import Change, Comparison, LeftOut, Run, Side
from survive.judge.conditions import (
    ACCEPTABLE,
    SAME,
    Difference,
    changed_keys,
    conditions_of,
    differing,
    no_basis,
)
from survive.judge.measures import measures_of
from survive.judge.pairs import pairs_of, stopped_pair, was_stopped
from survive.judge.spectra import Place, Spectrum, beside, spectra_of
from survive.judge.verdict import Verdict
from survive.record.events import EventName
from survive.record.reader import Record
from survive.scenario.model import Scenario


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One run, as far as a comparison goes; small enough to hold hundreds."""

    folder: Path
    seed: int
    started_utc: str
    ended: str  # complete, or how else
    verdict: Verdict
    conditions: Mapping[str, str]
    scenario: Scenario
    spectra: Mapping[Place, Spectrum]

    @classmethod
    def of(cls, record: Record, scenario: Scenario, verdict: Verdict) -> Episode:
        """What a record and its verdict come to."""
        return cls(
            record.folder,
            record.plan.seed,
            str(record.manifest.get("started_utc", "")),
            record.named(EventName.RUN_ENDED)[-1].text("ended"),
            verdict,
            conditions_of(record, scenario, verdict),
            scenario,
            spectra_of(record),
        )

    @property
    def virtual(self) -> bool:
        """It is the same run whenever it is made."""
        return self.conditions["host"] == "virtual"


@dataclass(frozen=True, slots=True)
class Given:
    """One side as it was read; ``left_out`` are runs that could not be."""

    name: str  # base | new
    episodes: Sequence[Episode]
    left_out: Sequence[LeftOut] = ()


def compare(
    base: Given, new: Given, accept: Sequence[str] = (), *, tolerate: float = 0.0
) -> Comparison:
    """Compare two sides. RecordError if they did not do the same, or if one has no basis.

    ``accept``: conditions (of ACCEPTABLE) whose difference is taken for none. ``tolerate``: a share
    of its badness (see `_badness`) by which a cell may be worse and is not called so.
    """
    old, fresh = _fit(base), _fit(new)
    _check_same(old, fresh)
    differences = differing(ACCEPTABLE, _conditions(old), _conditions(fresh), accept)
    sides = _verdicts(old.episodes), _verdicts(fresh.episodes)
    pairs, one_sided = pairs_of(*sides)
    pairs += stopped_pair(*sides)
    whole = _whole(old), _whole(fresh)
    asked = Asked(_blocked(differences), tolerate, len(old.left_out), len(fresh.left_out))
    cells = tuple(changes_of(pairs, asked))
    words = {cell.change for cell in cells}
    return Comparison(
        scenario=old.episodes[0].scenario.name,
        change=next((word for word in Change if word in words), Change.UNDECIDED),
        base=_side(old),
        new=_side(fresh),
        differences=differences,
        notes=(*_notes(base, new, old, fresh), *one_sided),
        cells=cells,
        measures=tuple(measures_of(_verdicts(whole[0]), _verdicts(whole[1]))),
        spectra=tuple(beside(*([e.spectra for e in side] for side in whole))),
        tolerated=tolerate,
    )


def _verdicts(episodes: Sequence[Episode]) -> list[Verdict]:
    return [episode.verdict for episode in episodes]


def _whole(given: Given) -> list[Episode]:
    """Those that stop_if did not end."""
    return [episode for episode in given.episodes if not was_stopped(episode.verdict)]


# ------------------------------------------------------------------------------ what is compared


def _fit(given: Given) -> Given:
    """The episodes that are a basis; of virtual ones with the same seed the first."""
    kept: dict[object, Episode] = {}
    out = [*given.left_out]
    for episode in given.episodes:
        if why := no_basis(episode.verdict, episode.ended):
            out.append(LeftOut(str(episode.folder), why))
        else:
            kept.setdefault(episode.seed if episode.virtual else episode.folder, episode)
    if not kept:
        raise RecordError(f"no run of {given.name} can be compared: {out[0].why}")
    return Given(given.name, [*kept.values()], out)


def _conditions(given: Given) -> list[Mapping[str, str]]:
    return [episode.conditions for episode in given.episodes]


def _check_same(base: Given, new: Given) -> None:
    if other := differing(SAME, _conditions(base), _conditions(new)):
        named = [f"{d.what} ({d.base}; {d.new})" if d.what in SAME[:2] else d.what for d in other]
        raise RecordError(
            f"the runs did not do the same: other {', '.join(named)}",
            hint="compare runs of one scenario, profile and host; the target file may differ",
        )


def _blocked(differences: Sequence[Difference]) -> str:
    """Why nothing may be judged, or ""."""
    open_ = [f"{d.what} ({d.base}; {d.new})" for d in differences if not d.accepted]
    return f"other {', '.join(open_)}: the difference may come from that" if open_ else ""


def _side(given: Given) -> Side:
    runs = (
        Run(str(e.folder), e.seed, e.started_utc, e.verdict.verdict, e.verdict.exit_code)
        for e in given.episodes
    )
    return Side(tuple(runs), tuple(given.left_out))


def _notes(base: Given, new: Given, old: Given, fresh: Given) -> Iterator[str]:
    """What else a reader has to know, none of it a reason not to judge."""
    for given, fit in ((base, old), (new, fresh)):
        left = len(fit.left_out) - len(given.left_out)
        if twice := len(given.episodes) - len(fit.episodes) - left:
            yield f"{given.name}: {twice} virtual runs repeat a seed: the same run, not counted"
    targets = [side.episodes[0].scenario.raw_target for side in (old, fresh)]
    if keys := changed_keys(*targets):
        yield f"the target file differs in {', '.join(keys)}"
    seeds = [sorted(e.seed for e in side.episodes) for side in (old, fresh)]
    if seeds[0] != seeds[1]:
        yield "other seeds: arrivals and victims were drawn anew"
    folders = [{e.folder.resolve() for e in side.episodes} for side in (old, fresh)]
    if same := folders[0] & folders[1]:
        yield f"runs that are on both sides: {len(same)}"

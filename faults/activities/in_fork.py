"""What a fork does with a question: check, act or look. The only place that imports chaoslib."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

Json: TypeAlias = "dict[str, Any]"

_SAID = 500  # characters of an output that evidence shows


def ready() -> None:
    """Import once what every fork needs, and quiet it."""
    import chaoslib.activity
    import chaoslib.hypothesis

    assert chaoslib.activity and chaoslib.hypothesis
    logging.getLogger("logzero_default").setLevel(logging.CRITICAL)
    logging.getLogger("chaostoolkit").setLevel(logging.CRITICAL)


def answer(question: Json) -> Json:
    """What came of an activity; ``wrong`` is empty if it did its work."""
    try:
        return _VERBS[question["verb"]](question)
    except BaseException as error:  # an extension may raise anything; it is only evidence
        return {"wrong": f"{type(error).__name__}: {error}"[:_SAID]}


def _check(question: Json) -> Json:
    """All activities can be called here: importable, with these arguments, secrets at hand."""
    from chaoslib.activity import ensure_activity_is_valid
    from chaoslib.hypothesis import ensure_hypothesis_tolerance_is_valid

    _blocks(question)
    for activity in question["activities"]:
        ensure_activity_is_valid(activity)
        if "tolerance" in activity:
            ensure_hypothesis_tolerance_is_valid(activity["tolerance"])
    return {"wrong": ""}


def _act(question: Json) -> Json:
    """Run an action and judge it: Chaos Toolkit itself says "succeeded" of all but exceptions."""
    run = _run(question, *_blocks(question))
    return {"wrong": complaint(question["activity"], run)}


def _look(question: Json) -> Json:
    """Run a probe and hold its output against its tolerance."""
    from chaoslib import substitute
    from chaoslib.hypothesis import within_tolerance

    blocks = _blocks(question)
    run = _run(question, *blocks)
    if run["status"] != "succeeded":
        return {"wrong": complaint(question["activity"], run)}
    tolerance = question["activity"]["tolerance"]
    if isinstance(tolerance, str):
        tolerance = substitute(tolerance, *blocks)
    within = within_tolerance(tolerance, run["output"], *blocks)
    return {"wrong": "", "within": within is True, "said": _shown(run["output"])}


_VERBS = {"check": _check, "act": _act, "look": _look}


def _blocks(question: Json) -> tuple[Json, Json]:
    from chaoslib.configuration import load_configuration, load_dynamic_configuration
    from chaoslib.secret import load_secrets

    configuration = load_configuration(question.get("configuration") or {}, {})
    secrets = load_secrets(question.get("secrets") or {}, configuration)
    return load_dynamic_configuration(configuration, secrets), secrets


def _run(question: Json, configuration: Json, secrets: Json) -> Json:
    from chaoslib.activity import execute_activity

    run: Json = execute_activity(
        experiment={},
        activity=question["activity"],
        configuration=configuration,
        secrets=secrets,
        dry=None,
    )
    return run


def complaint(activity: Json, run: Json) -> str:
    """What is wrong with a run of an action; "" = it did its work."""
    output = run.get("output")
    provider = activity["provider"]["type"]
    if run.get("status") != "succeeded":
        said = run.get("exception") or [f"status {run.get('status')}"]
        return str(said[-1]).strip()[:_SAID]
    status = output.get("status") if isinstance(output, dict) else None
    if provider == "process" and status != 0:
        return f"exit {status}: {_shown(output)}"
    if provider == "http" and not (isinstance(status, int) and status < 400):
        return f"HTTP {status}: {_shown(output)}"
    return "its output is False" if output is False else ""


def _shown(output: object) -> str:
    if isinstance(output, dict) and "status" in output:
        said = output.get("stderr") or output.get("stdout") or output.get("body") or ""
        return f"{output['status']} {str(said).strip()}".strip()[:_SAID]
    return str(output)[:_SAID]

"""docs/ci.md: what it shows is valid where it is pasted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from survive.catalog import Catalog
from survive.cli import cli
from survive.errors import ExitCode

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(
    r"(?<![\w.])(?:\.survive/bin/)?survive ((?:run|report|validate) [^\n`']*)", PAGE
)


def test_snippets_are_yaml_of_the_right_shape():
    github, gitlab = (yaml.safe_load(text) for text in SNIPPETS)
    steps = github["jobs"]["shop"]["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    assert gitlab["survive"]["artifacts"]["reports"] == {
        "junit": "junit.xml",
        "metrics": "metrics.txt",
    }


@pytest.mark.parametrize("command", [c for c in COMMANDS if ".yaml" in c or "latest" in c])
def test_commands_are_taken_as_they_stand(command):
    name, *arguments = shlex.split(command)
    context = cli.commands[name].make_context(name, arguments)
    known = Catalog().reporter_names()
    for report in context.params.get("reports") or ():
        assert report.partition("=")[0] in known
    assert context.params["form"] in {"human", *known} if "form" in context.params else True


def test_every_exit_code_and_every_format_of_ci_is_told():
    told = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.M) for code in row.split(",")
    }
    assert told == {int(code) for code in ExitCode}
    formats = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert formats == {"junit", "markdown", "github", "openmetrics", "hgrm", "json"}
    assert formats <= set(Catalog().reporter_names())


def test_help_names_every_format():
    told = cli.commands["report"].help
    assert all(name in told for name in Catalog().reporter_names())

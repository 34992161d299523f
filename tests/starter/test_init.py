"""``survive init``: what it writes is valid, runs, and harms nothing that is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from survive.cli import cli
from survive.errors import ExitCode, UsageError
from survive.host.command import run_scenario
from survive.judge.explain import too_few
from survive.scenario.loader import load_scenario
from survive.starter.command import Asked, init_project

ASKED = {
    "reference": {},
    "url": {"url": "http://127.0.0.1:8080/v1/things?limit=3"},
    "process": {"target": "process"},
    "compose": {"target": "compose"},
}

SHORTER = (  # a minute as 5 s
    "load.phases.warm-up.for=200ms",
    "load.phases.steady.rate=80/s",
    "load.phases.steady.for=5s",
    "faults.slow-network.at=steady + 1s",
    "faults.slow-network.for=1s",
    "objectives.answers.min=95%",
    "objectives.degrade-not-die.min=90%",
    "objectives.comes-back.max=1s",
    "objectives.comes-back.stable_for=1s",
)


def begin(folder: Path, **asked: object) -> Path:
    """Its scenario."""
    assert init_project(Asked(folder, **asked)) is ExitCode.SURVIVED  # type: ignore[arg-type]
    [scenario] = (folder / "scenarios").iterdir()
    return scenario


@pytest.fixture(params=list(ASKED))
def shop(request, tmp_path):
    return begin(tmp_path / "shop", **ASKED[request.param])


def test_what_it_writes_is_valid_without_a_warning_and_without_git(shop):
    scenario = load_scenario(shop)
    assert scenario.name == "shop"
    assert [*scenario.warnings, *too_few(scenario)] == []
    assert scenario.faults and scenario.stop_if
    assert {objective.metric for objective in scenario.objectives.values()} >= {
        "success",
        "recovery",
    }


def test_its_files_name_a_schema_that_is_there_and_fits(shop):
    for path in [shop, *(shop.parents[1] / "targets").glob("*.yaml")]:
        comment, _, place = path.read_text().splitlines()[0].partition("$schema=")
        assert comment == "# yaml-language-server: "
        schema = json.loads((path.parent / place).read_text())
        jsonschema.Draft7Validator(schema).validate(yaml.safe_load(path.read_text()))


def test_no_word_of_a_template_is_left(shop):
    for path in shop.parents[1].rglob("*"):
        if path.is_file():
            assert re.findall("@[A-Z]+@", path.read_text()) == []


@pytest.mark.parametrize("kind", ["reference", "process"])
def test_it_survives_in_virtual_time(kind, tmp_path, capsys):
    code = run_scenario(
        begin(tmp_path / "shop", **ASKED[kind]),
        target=None,
        sets=(),
        profile=None,
        out=tmp_path / "runs",
        form="human",
        virtual=True,
    )
    said = capsys.readouterr().out
    assert code is ExitCode.SURVIVED, said
    assert "2 faults proven" in said


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *told):
        pass


def test_a_url_that_answers_survives_in_real_time(tmp_path, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = run_scenario(
            begin(tmp_path / "shop", url=f"http://127.0.0.1:{server.server_port}/hello"),
            target=None,
            sets=SHORTER,
            profile=None,
            out=tmp_path / "runs",
            form="human",
            virtual=False,
        )
        server.shutdown()
    assert code is ExitCode.SURVIVED, capsys.readouterr().out


def test_a_url_becomes_one_get_on_its_entry(tmp_path):
    scenario = load_scenario(begin(tmp_path / "shop", url="https://[::1]:8443/a/b?c=d%20e"))
    [page] = scenario.requests.values()
    assert (page.method, page.path) == ("GET", "/a/b?c=d%20e")
    assert scenario.target.services["web"].url == "https://[::1]:8443"
    assert scenario.target.allow_hosts == ("::1",)
    [fault] = scenario.faults.values()
    assert fault.link == scenario.target.entry_link


def test_a_host_elsewhere_is_told(tmp_path, capsys):
    begin(tmp_path / "shop", url="https://api.example.org")
    assert "only if it is yours" in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"target": "url"}, "needs --url"),
        ({"target": "process", "url": "http://127.0.0.1/"}, "of no use"),
        ({"url": "ftp://127.0.0.1/"}, "no http(s) address"),
        ({"url": "127.0.0.1:8080"}, "no http(s) address"),
        ({"url": "http://127.0.0.1:port/"}, "port"),
        ({"url": "http://[::1/"}, "--url"),
        ({"url": "http://me:secret@127.0.0.1/"}, "holds a user"),
        ({"url": "http://127.0.0.1/{{ row.x }}"}, "holds a character"),
        ({"url": "http://127.0.0.1/#top"}, "no request can carry"),
        ({"url": "http://127.0.0.1/ü"}, "holds a character"),
        ({"name": "../up"}, "cannot name a scenario"),
        ({"name": "My Shop"}, "cannot name a scenario"),
        ({"name": ""}, "cannot name a scenario"),
        ({"name": "production", "target": "process"}, "comes with survive"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint_before_anything_is_written(asked, said, tmp_path):
    with pytest.raises(UsageError) as error:
        begin(tmp_path / "shop", **asked)
    assert said in error.value.message
    assert error.value.hint or "port" in error.value.message
    assert not (tmp_path / "shop").exists()


def test_the_hint_for_an_odd_name_is_one_that_it_takes(tmp_path):
    with pytest.raises(UsageError) as error:
        begin(tmp_path / "My Shop!")
    word, name = error.value.hint.split()
    assert word == "--name"
    assert begin(tmp_path / "My Shop!", name=name).name == "my-shop.survive.yaml"


def test_nothing_is_overwritten_unless_it_is_forced(tmp_path):
    shop = begin(tmp_path / "shop", target="process")
    shop.write_text("ours")
    target = shop.parents[1] / "targets" / "shop.yaml"
    target.unlink()
    with pytest.raises(UsageError) as error:
        begin(tmp_path / "shop", target="process")
    assert "scenarios/shop.survive.yaml, targets/shop/stack.py are there" in error.value.message
    assert shop.read_text() == "ours"
    assert not target.exists()
    begin(tmp_path / "shop", target="process", force=True)
    assert load_scenario(shop).name == "shop"


def test_a_second_scenario_stands_beside_the_first(tmp_path, capsys):
    begin(tmp_path, name="one", ci="github")
    schema = tmp_path / "schema" / "scenario.v1.json"
    schema.write_text("{}")
    init_project(Asked(tmp_path, name="two", ci="github"))
    assert schema.read_text() == "{}"
    assert capsys.readouterr().out.count("there already, left") == 3
    assert len([*(tmp_path / "scenarios").iterdir()]) == 2
    assert (tmp_path / ".gitignore").read_text() == "runs/\n"


@pytest.mark.parametrize(
    "before, after",
    [
        (None, "runs/\n"),
        ("*.pyc", "*.pyc\nruns/\n"),
        ("*.pyc\n", "*.pyc\nruns/\n"),
        ("/runs/\n", "/runs/\n"),
    ],
)
def test_gitignore_gets_its_line_once(before, after, tmp_path):
    if before is not None:
        (tmp_path / ".gitignore").write_text(before)
    begin(tmp_path, name="shop")
    assert (tmp_path / ".gitignore").read_text() == after


@pytest.mark.parametrize(
    "there, asked, written",
    [
        (".github/x", None, ".github/workflows/survive-shop.yml"),
        (".gitlab-ci.yml", None, ".gitlab/survive-shop.yml"),
        ("x", None, None),
        (".github/x", "none", None),
        ("x", "gitlab", ".gitlab/survive-shop.yml"),
    ],
)
def test_a_gate_is_written_for_the_forge_that_is_in_use(there, asked, written, tmp_path):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    begin(tmp_path, name="shop", ci=asked)
    found = list(tmp_path.rglob("survive-shop.yml"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [written] * bool(written)
    for path in found:
        text = path.read_text()
        assert yaml.safe_load(text)
        assert "survive run scenarios/shop.survive.yaml" in text
        assert "SURVIVE_PACKAGE:?" in text  # an unset variable installs nobody else's package


def test_as_typed_it_names_the_next_command_and_exits_2_the_second_time(tmp_path):
    argv = [sys.executable, "-m", "survive", "init", "shop"]
    runs = [
        subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [0, 2]
    assert "next:\n  cd shop\n  survive doctor scenarios/shop.survive.yaml" in runs[0].stdout
    assert max(map(len, runs[0].stdout.splitlines())) <= 80
    assert "scenarios/shop.survive.yaml is there already" in runs[1].stderr
    assert "--force" in runs[1].stderr


def test_a_folder_that_is_a_file_is_a_wrong_command_line(tmp_path):
    (tmp_path / "shop").touch()
    assert CliRunner().invoke(cli, ["init", str(tmp_path / "shop")]).exit_code == ExitCode.INVALID

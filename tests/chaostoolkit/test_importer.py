"""``survive import``: what an experiment becomes, and what is said to be left out."""

from __future__ import annotations

import json

import pytest
import yaml

from survive.catalog import Catalog
from survive.chaostoolkit.importer import import_experiment
from survive.chaostoolkit.pairing import pair
from survive.cli import main
from survive.errors import UsageError
from survive.scenario.loader import load_scenario
from survive.units import SECOND

HTTP = {"type": "http", "url": "http://127.0.0.1:8080/health?deep=1", "timeout": 3}


def call(func, module="chaosk8s.deployment.actions", **arguments):
    return {"type": "python", "module": module, "func": func, "arguments": arguments}


def action(name, provider, **other):
    return {"type": "action", "name": name, "provider": provider, **other}


def experiment(*, probes=None, method=(), rollbacks=(), **other):
    if probes is None:
        probes = [{"type": "probe", "name": "Is it well?", "tolerance": 200, "provider": HTTP}]
    return {
        "title": "Does it cope?",
        "description": "one\nreplica is lost",
        "steady-state-hypothesis": {"title": "well", "probes": probes},
        "method": list(method),
        "rollbacks": list(rollbacks),
        **other,
    }


@pytest.fixture
def imported(tmp_path):
    """The scenario as our own loader sees it, its data and its notes."""

    def take(content):
        file = tmp_path / "experiment.json"
        file.write_text(json.dumps(content))
        result = import_experiment(file)
        out = tmp_path / "out.survive.yaml"
        out.write_text(result.text())
        loaded = load_scenario(out, catalog=Catalog(out, plugins=False))
        return loaded, yaml.safe_load(result.text()), result.notes

    return take


def test_the_hypothesis_becomes_traffic_and_objectives(imported):
    scenario, data, notes = imported(experiment())
    (kind,) = scenario.requests.values()
    assert (kind.method, kind.path, kind.timeout_us) == ("GET", "/health?deep=1", 3 * SECOND)
    assert kind.expect.status == {200} and data["requests"]["is-it-well"]["expect"]
    assert [o.during for o in scenario.objectives.values()] == ["steady"]
    assert data["target"]["services"]["service"]["url"] == "http://127.0.0.1:8080"
    assert scenario.about == "one replica is lost" and notes == []


@pytest.mark.parametrize("text", ["y", "No", "1e5", "0x10", "1_000", "a: b", "# x", "~"])
def test_text_that_yaml_could_take_for_something_else_stays_text(imported, text):
    scenario, *_ = imported(experiment(description=text))
    assert scenario.about == text


def test_tolerances_methods_and_bodies(imported):
    post = {"type": "http", "url": "http://127.0.0.1:8080/chat", "method": "POST",
            "headers": {"Content-Type": "application/json", "X-A": "b"},
            "arguments": {"q": "hi"}}  # fmt: skip
    query = {"type": "http", "url": "http://127.0.0.1:8080/s", "arguments": {"q": "a b"}}
    probes = [
        {"name": "chat", "tolerance": [200, 201], "provider": post},
        {"name": "find", "tolerance": {"type": "regex", "pattern": "x"}, "provider": query},
    ]
    scenario, _, notes = imported(experiment(probes=probes))
    chat, find = scenario.requests.values()
    assert (chat.method, chat.json) == ("POST", {"q": "hi"})
    assert [(name.lower(), value) for name, value in chat.headers] == [("x-a", "b")]
    assert chat.expect.status == {200, 201} and find.path == "/s?q=a+b"
    assert ["more than a status" in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("provider", "why"),
    [
        (call("all_microservices_healthy"), "a python probe makes no traffic"),
        ({"type": "http", "url": "https://example.org/"}, "only http://host:port"),
        ({"type": "http", "url": "http://127.0.0.1:9/x"}, "load has one entry"),
        ({"type": "http", "url": "${late}/x"}, "only known at run time"),
        ({**HTTP, "headers": {"Authorization": "Bearer ${key}"}}, "secrets stand in a target"),
        ({**HTTP, "method": "POST", "arguments": {"a": 1}}, "its body is no JSON"),
        ({**HTTP, "method": "TRACE"}, "method TRACE"),
    ],
)
def test_a_probe_that_is_no_traffic_is_listed(imported, provider, why):
    odd = {"name": "odd", "tolerance": True, "provider": provider}
    good = experiment()["steady-state-hypothesis"]["probes"]
    scenario, data, notes = imported(experiment(probes=[*good, odd]))
    assert list(scenario.requests) == ["is-it-well"]
    assert len(notes) == 1 and why in notes[0] and data["x-left-out"] == notes


def test_configuration_is_resolved_and_the_environment_stays_one(imported):
    url = {"type": "http", "url": "${base}/a/${part}"}
    probes = [{"name": "a", "tolerance": 200, "provider": url}]
    configuration = {"base": {"type": "env", "key": "BASE_URL"}, "part": "b"}
    scenario, data, _ = imported(experiment(probes=probes, configuration=configuration))
    assert data["target"]["services"]["service"]["url"] == "${BASE_URL}"
    assert scenario.requests["a"].path == "/a/b"


def test_the_method_becomes_a_timeline(imported):
    method = [
        action("slow", call("add_x"), background=True, pauses={"after": 5}),
        action("wait", {"type": "process", "path": "sleep", "arguments": "7"}),
        action("long", call("stress", duration=4), pauses={"before": "${rest}"}),
        action("last", call("drop")),
    ]
    scenario, data, notes = imported(experiment(method=method, configuration={"rest": 2}))
    starts = {name: fault.at_us // SECOND for name, fault in scenario.faults.items()}
    assert starts == {"slow": 23, "long": 37, "last": 41}
    assert {fault.kind for fault in scenario.faults.values()} == {"chaostoolkit.once"}
    assert data["target"]["allow"]["privileged"] is True
    assert sum("needs a `verify:` probe" in note for note in notes) == 3
    assert sum("is irreversible" in note for note in notes) == 3
    assert sum("no recovery objective" in note for note in notes) == 1


def test_rollbacks_become_heals(imported):
    method = [
        action("scale", call("scale_deployment", name="web", replicas=0), pauses={"after": 30}),
    ]
    rollbacks = [
        action("back", call("scale_deployment", name="web", replicas=3)),
        action("mail", {"type": "process", "path": "mail"}),
    ]
    scenario, _, notes = imported(experiment(method=method, rollbacks=rollbacks))
    (fault,) = scenario.faults.values()
    assert (fault.kind, fault.for_us) == ("chaostoolkit", 31 * SECOND)
    assert fault.settings["heal"]["provider"]["arguments"]["replicas"] == 3
    assert "comes-back" in scenario.objectives
    assert any("rollback 'mail' is left out" in note for note in notes)


def test_a_probe_with_a_tolerance_right_after_is_the_proof(imported):
    count = {"type": "probe", "name": "count", "tolerance": 0,
             "provider": call("count_pods", "chaosk8s.pod.probes")}  # fmt: skip
    scenario, _, notes = imported(experiment(method=[action("kill", call("kill")), count]))
    verify = scenario.faults["kill"].settings["verify"]
    assert verify["tolerance"] == 0 and verify["provider"]["func"] == "count_pods"
    assert not any("needs a `verify:`" in note for note in notes)


def test_without_a_probe_the_proof_always_fails(imported):
    """A fault that nobody checks must never be green."""
    scenario, _, _ = imported(experiment(method=[action("kill", call("kill"))]))
    provider = scenario.faults["kill"].settings["verify"]["provider"]
    from chaoslib.exceptions import ActivityFailed

    from survive.chaostoolkit import probes

    assert provider["module"] == "survive.chaostoolkit.probes"
    with pytest.raises(ActivityFailed, match="write one for `verify:`"):
        getattr(probes, provider["func"])()


def test_secrets_that_are_written_out_do_not_reach_the_file(imported):
    secrets = {"k8s": {"TOKEN": "sesame", "HOST": {"type": "env", "key": "H"}}}
    content = experiment(method=[action("kill", call("kill"))], secrets=secrets)
    _, data, notes = imported(content)
    kept = data["faults"]["kill"]["with"]["secrets"]["k8s"]
    assert kept == {"TOKEN": {"type": "env", "key": "TOKEN"}, "HOST": {"type": "env", "key": "H"}}
    assert "sesame" not in str(data) and any("'TOKEN' was written out" in note for note in notes)


def test_many_and_long_faults_fit_into_what_is_allowed(imported):
    method = [action(f"a{n}", call("add_x", name=f"n{n}"), background=True) for n in range(5)]
    method.append(action("sleep", {"type": "process", "path": "sleep", "arguments": ["900"]}))
    undo = [action(f"b{n}", call("remove_x", name=f"n{n}")) for n in range(5)]
    scenario, _, _ = imported(experiment(method=method, rollbacks=undo))
    assert [fault.for_us for fault in scenario.faults.values()] == [900 * SECOND] * 5


def undoes(one, other):
    (found,), _ = pair([action("a", one)], [action("r", other)])
    return found is not None


@pytest.mark.parametrize(
    ("one", "other", "yes"),
    [
        (call("stop_node"), call("start_node"), True),
        (call("cordon_node", name="a"), call("uncordon_node", name="a"), True),
        (call("cordon_node", name="a"), call("uncordon_node", name="b"), False),
        (call("add_latency"), call("remove_latency"), True),
        (call("add_latency"), call("remove_loss"), False),
        (call("stop_node"), call("start_node", "chaosaws.ec2.actions"), False),
        (call("scale", replicas=0), call("scale", replicas=2), True),
        (call("kill"), call("kill"), False),
        ({"type": "http", "url": "http://x/toxics", "method": "POST"},
         {"type": "http", "url": "http://x/toxics/slow", "method": "DELETE"}, True),
        ({"type": "http", "url": "http://x/a", "method": "POST"},
         {"type": "http", "url": "http://x/b", "method": "DELETE"}, False),
        ({"type": "process", "path": "tc"}, {"type": "process", "path": "tc"}, False),
    ],
)  # fmt: skip
def test_a_rollback_is_paired_only_where_nobody_could_doubt_it(one, other, yes):
    assert undoes(one, other) is yes


def test_two_possible_heals_are_none():
    scale = [action("a", call("scale", replicas=0))]
    backs = [action("r", call("scale", replicas=n)) for n in (1, 2)]
    assert pair(scale, backs) == ([None], backs)
    assert pair(scale * 2, backs[:1]) == ([None, None], backs[:1])


@pytest.mark.parametrize("content", ["[]", "{", '{"method": 3}'])
def test_what_is_no_experiment_is_said_so(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UsageError):
        import_experiment(file)


def run_cli(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        main(["import", *map(str, argv)])
    return ended.value.code, *capsys.readouterr()


def test_nothing_runnable_is_exit_2_with_the_list(tmp_path, capsys):
    file = tmp_path / "x.yaml"
    probes = [{"name": "pods", "provider": call("healthy")}]
    file.write_text(yaml.safe_dump(experiment(probes=probes, controls=[{"name": "c"}])))
    code, out, err = run_cli(capsys, file)
    assert code == 2 and out == "" and "nothing of it would run" in err
    assert "'pods' is left out" in err and "`controls` is not carried over" in err


def test_the_command_writes_a_valid_file(tmp_path, capsys):
    file, out = tmp_path / "x.json", tmp_path / "y.survive.yaml"
    file.write_text(json.dumps(experiment(method=[action("kill", call("kill"))])))
    code, said, err = run_cli(capsys, file, "-o", out)
    assert code == 0 and said == "" and "note: fault 'kill' needs a `verify:` probe" in err
    assert load_scenario(out, catalog=Catalog(out, plugins=False)).name == "does-it-cope"
    assert out.read_text().startswith("# Imported from a Chaos Toolkit experiment")
    code, said, _ = run_cli(capsys, file)
    assert code == 0 and said == out.read_text()


def test_an_unreadable_file_is_no_traceback(tmp_path, capsys):
    code, _, err = run_cli(capsys, tmp_path / "none.json")
    assert code == 2 and "cannot be read" in err

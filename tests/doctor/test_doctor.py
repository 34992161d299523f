"""``survive doctor``: what it says of a host is what a run would meet there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from click.testing import CliRunner

from survive.catalog import Catalog
from survive.chaos import halt, netns, processes
from survive.chaos.ledger import Ledger, Named, Owner, halt_file
from survive.cli import cli
from survive.contracts import HandleSpec, check_host
from survive.doctor import host
from survive.doctor.command import Asked, Examination, examine, page
from survive.doctor.findings import Finding, Lack, Level
from survive.doctor.host import host_findings, no_docker
from survive.doctor.kinds import Kind, Place, every_kind, places, this_process
from survive.doctor.needs import needs_of
from survive.errors import ExitCode, RefusedError, WrongTargetError
from survive.scenario.loader import load_scenario

NO_DOCKER, NO_NAMESPACES = Lack("no Docker", "start it"), Lack("no namespaces", "be root")
BUILT_IN = Catalog(plugins=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here is about how late this machine wakes."""
    monkeypatch.setattr(host, "wake_noise_us", lambda for_s: (7, 70))


def kinds(docker: Lack = NO_DOCKER, namespaces: Lack = NO_NAMESPACES) -> dict[str, Kind]:
    return {kind.kind: kind for kind in every_kind(BUILT_IN, places(docker, namespaces))}


def level(findings, name):
    [found] = [finding for finding in findings if finding.name == name]
    return found.level


# ------------------------------------------------------------------------------------ the kinds


def test_every_kind_is_told_once():
    assert list(kinds()) == list(BUILT_IN.fault_kinds())


def test_what_is_played_on_processes_needs_neither_docker_nor_namespaces():
    found = kinds()
    for kind in ("node.kill", "network.latency", "gpu.lost", "protocol.cut", "dependency.slow"):
        assert found[kind].why == "", kind


def test_a_kind_that_hits_another_kind_of_target_lacks_what_that_target_lacks():
    found = kinds()
    assert found["container.cpu"].why == NO_DOCKER.why
    assert found["container.cpu"].hint == NO_DOCKER.hint
    assert found["network.drop"].why == NO_NAMESPACES.why
    assert kinds(docker=Lack())["container.cpu"].why == ""


def test_packet_faults_lack_the_program_that_sets_their_rules(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    found = kinds(namespaces=Lack())
    assert "iptables-restore" in found["network.drop"].why
    assert "iptables" in found["network.drop"].hint
    assert "tc" in found["network.netem_latency"].why


def test_a_cpu_limit_lacks_a_control_group_and_names_no_replica():
    place = Place(replace(this_process(), cgroup=""), Lack())
    [found] = [k for k in every_kind(BUILT_IN, [place]) if k.kind == "node.cpu_limit"]
    assert found.why == "no control group for cpu can be written on this host"


def test_a_skewed_clock_lacks_its_library(monkeypatch, tmp_path):
    module = sys.modules[type(BUILT_IN.fault("node.clock_skew")).__module__]
    monkeypatch.setattr(module, "_LIBRARIES", tmp_path)
    assert "libfaketime" in kinds()["node.clock_skew"].why
    (tmp_path / "x86" / "faketime").mkdir(parents=True)
    (tmp_path / "x86" / "faketime" / "libfaketime.so.1").touch()
    assert kinds()["node.clock_skew"].why == ""


def test_without_nvml_no_fault_has_a_card(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = kinds()
    assert "nvidia-ml-py" in found["nvidia.vram_hog"].why
    assert "simulated" in found["nvidia.vram_hog"].hint


@pytest.mark.parametrize("kind", list(BUILT_IN.fault_kinds()))
def test_what_a_host_is_refused_for_a_run_is_refused_for(kind):
    """One truth: check_host is a part of preflight, whatever a fault makes of it."""
    fault = BUILT_IN.fault(kind)
    external = HandleSpec("external", "web", 0, "127.0.0.1:1")
    for spec in [external, *(place.spec for place in places(Lack(), Lack()))]:
        try:
            check_host(fault, None, spec)
        except RefusedError as refused:
            with pytest.raises(type(refused)):
                fault.preflight(None, [spec])


def test_a_fault_that_says_nothing_of_hosts_is_taken_to_work():
    class Own:
        kind = "own.fault"

    check_host(Own(), None, this_process())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- the host


def test_the_host_is_told_in_findings_with_names_of_their_own():
    found = host_findings(NO_DOCKER, Lack())
    names = [finding.name for finding in found]
    assert len(set(names)) == len(names)
    assert {"lanes", "files", "ports", "cores", "leftovers", "halt", "state"} <= set(names)
    assert level(found, "docker") is Level.ABSENT
    assert level(found, "namespaces") is Level.OK
    assert all(finding.hint for finding in found if finding.level is not Level.OK)


@pytest.mark.parametrize(
    ("psi", "expected"),
    [
        ("some avg10=3.10 avg60=0.00 avg300=0.00 total=1\n", Level.OK),
        ("some avg10=31.00 avg60=0.00 avg300=0.00 total=1\n", Level.NOTE),
        ("nonsense\n", Level.NOTE),
    ],
)
def test_pressure_is_the_kernels_word(psi, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_PRESSURE", tmp_path)
    (tmp_path / "cpu").write_text(psi)
    assert host.pressure().level is expected


def test_a_noisy_machine_a_missing_compiler_and_few_ports_are_noted(monkeypatch):
    monkeypatch.setattr(host, "wake_noise_us", lambda for_s: (90, 4000))
    monkeypatch.setattr(host, "compiled_lanes", lambda: False)
    monkeypatch.setattr(host, "local_ports", lambda: 5000)
    assert [f().level for f in (host.wake_ups, host.lanes, host.ports)] == [Level.NOTE] * 3
    assert "4,000" in host.wake_ups().found


def test_a_package_that_is_gone_is_wrong(monkeypatch):
    monkeypatch.setattr(host, "PACKAGES", ("click", "no-such-package-of-anybody"))
    found = host.packages()
    assert (found.level, found.hint) == (Level.WRONG, "pip install no-such-package-of-anybody")


def test_a_state_directory_that_cannot_be_made_is_wrong(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert host.state().level is Level.WRONG


def test_docker_of_another_host_is_none():
    assert "this host only" in no_docker({"DOCKER_HOST": "tcp://10.0.0.1:2375"}).why
    assert no_docker({"DOCKER_HOST": "unix:///no/such.sock"}).why.startswith("no Docker daemon")


def test_namespaces_need_root(monkeypatch):
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    assert netns.lacks() == netns.unwilling() == "isolation: netns needs root"


# ------------------------------------------------------------------------------- the exit code


@pytest.fixture
def left_behind():
    """A process that lives, of a run that does not."""
    dead = Named(2**22 - 1, 1)
    ledger = Ledger.create("dead-1", "dead", Owner(processes.boot_id(), dead, dead))
    with subprocess.Popen(["sleep", "60"]) as process:
        ledger.process("web-0", process.pid, processes.start_time(process.pid))
        ledger.close()
        yield process
        assert process.poll() is None, "doctor changes nothing"
        process.kill()


def run(*argv):
    done = CliRunner().invoke(cli, ["doctor", *argv], standalone_mode=False)
    return done.return_value, done.output


def scenario(folder, **target):
    body = {"survive": 1, "driver": "process", "entry": "web", "services": {}}
    (folder / "targets").mkdir()
    (folder / ".git").mkdir()
    file = {**body, "allow": {"faults": ["node", "container", "network"]}, **target}
    (folder / "targets" / "shop.yaml").write_text(json.dumps(file))
    path = folder / "shop.survive.yaml"
    path.write_text(
        textwrap.dedent("""\
            survive: 1
            name: shop
            target: shop
            requests: {get: {get: /}}
            load: {phases: [{name: flat, rate: 50/s, for: 20s}]}
            objectives: {answers: {metric: success, min: 90%, during: run}}
            """)
    )
    return path


def needs(path, *sets, env=None):
    catalog = Catalog(path)
    return needs_of(load_scenario(path, sets=sets, catalog=catalog), catalog, env or {})


def test_a_well_host_exits_0_and_nothing_is_changed(state_home):
    code, said = run()
    assert code == ExitCode.SURVIVED
    assert said.splitlines()[-1] == "runs can begin here, and nothing is left of any"
    assert not state_home.exists()


@pytest.mark.usefixtures("left_behind")
def test_leftovers_exit_5_and_say_what_to_type(tmp_path):
    path = scenario(tmp_path, services={"web": {"run": ["no-such-program-of-anybody"]}})
    for argv in ([], [str(path)]):  # 5 before 6
        code, said = run(*argv)
        assert code == ExitCode.HEAL_UNPROVEN
        assert said.splitlines()[-1].endswith("type `survive heal`")


def test_a_halt_refuses_the_runs_of_a_scenario_only(tmp_path):
    path = scenario(tmp_path, services={"web": {"run": ["true", "{port}"]}})
    assert run(str(path))[0] == ExitCode.SURVIVED
    halt_file().parent.mkdir(parents=True)
    halt_file().touch()
    code, said = run()
    assert code == ExitCode.SURVIVED
    assert "halt: new runs are refused" in said.splitlines()[-1]
    code, said = run(str(path))
    assert code == ExitCode.REFUSED
    assert "survive halt --clear" in said
    halt.clear()


def test_a_scenario_that_is_wrong_is_told_as_validate_tells_it(tmp_path):
    path = tmp_path / "x.survive.yaml"
    path.write_text("survive: 1\n")
    done = CliRunner().invoke(cli, ["doctor", str(path)], standalone_mode=False)
    assert done.exception.exit_code == ExitCode.INVALID


# -------------------------------------------------------------------------------- a scenario


def test_a_program_and_a_variable_that_are_not_here_are_missing(tmp_path):
    services = {"web": {"run": ["no-such-program-of-anybody"], "env": {"KEY": "${OF_NOBODY}"}}}
    path = scenario(tmp_path, services=services)
    found = needs(path)
    assert [f.level for f in found] == [Level.MISSING] * 2
    assert "OF_NOBODY" in found[0].found and "export OF_NOBODY" in found[0].hint
    assert "no-such-program-of-anybody" in found[1].found
    assert run(str(path))[0] == ExitCode.REFUSED


def test_a_fault_is_asked_with_its_own_settings_on_its_own_target(tmp_path):
    path = scenario(tmp_path, services={"web": {"run": ["true", "{port}"]}})
    full = "faults={full: {kind: node.disk_full, service: web, at: 1s, for: 1s, with: {path: %s}}}"
    [target, fault] = needs(path, full % tmp_path)
    assert target.level is Level.OK
    assert (fault.name, fault.level) == ("fault full", Level.MISSING)
    assert "no file system of its own" in fault.found
    cut = "faults={cut: {kind: container.network_disconnect, service: web, at: 1s, for: 1s}}"
    assert "needs containers" in needs(path, cut)[1].found


def test_what_needs_root_needs_the_targets_yes(tmp_path):
    path = scenario(tmp_path, services={"web": {"run": ["true", "{port}"]}})
    limit = "faults={l: {kind: node.cpu_limit, service: web, at: 1s, for: 1s, with: {share: 5%}}}"
    found = needs(path, limit)
    assert level(found, "permission") is Level.MISSING
    found = needs(path, limit, "target.allow.privileged=true")
    assert level(found, "permission") is Level.NOTE
    assert "--allow-privileged" in found[-1].found


def test_what_does_not_listen_yet_is_a_note_and_what_does_is_well(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        path = scenario(tmp_path, driver="external", services={"web": {"url": url}})
        assert [f.level for f in needs(path)] == [Level.OK]
    [found] = needs(path)
    assert found.level is Level.NOTE
    assert url in found.found
    code, said = run(str(path))
    assert code == ExitCode.SURVIVED
    assert "look at target shop" in said.splitlines()[-1]


def test_no_other_host_is_called(tmp_path):
    services = {"web": {"url": "http://192.0.2.1:9"}}
    allow = {"hosts": ["192.0.2.1"], "faults": []}
    path = scenario(tmp_path, driver="external", services=services, allow=allow)
    assert [f.level for f in needs(path)] == [Level.OK]


def test_a_key_that_is_not_set_is_missing(tmp_path):
    target = {
        "driver": "external",
        "services": {"web": {"url": "http://192.0.2.1:9"}},
        "allow": {"hosts": ["192.0.2.1"]},
        "auth": {"bearer": "${OF_NOBODY}"},
    }
    path = scenario(tmp_path, **target)
    assert level(needs(path), "keys") is Level.MISSING
    assert [f.level for f in needs(path, env={"OF_NOBODY": "x"})] == [Level.OK]


# ----------------------------------------------------------------------------------- its looks


def whole() -> Examination:
    return Examination(
        [
            Finding("python", Level.OK, "3.11 " * 40),
            Finding("leftovers", Level.WRONG, "x" * 30, "survive heal"),
        ],
        [*kinds().values()],
    )


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_line_is_wider_than_the_terminal(width):
    lines = [line.plain for line in page(whole(), width)]
    assert max(map(len, lines)) <= width
    assert all(kind.partition(".")[2] in "\n".join(lines) for kind in kinds())


def test_json_is_as_it_is_promised():
    code, said = run("--format", "json")
    told = json.loads(said)
    assert list(told) == ["version", "exit_code", "host", "faults", "scenario", "needs"]
    assert (told["version"], told["exit_code"]) == (1, code)
    assert set(told["host"][0]) == {"name", "level", "found", "hint"}
    assert set(told["faults"][0]) == {"kind", "here", "why", "hint", "privileges"}
    assert len(told["faults"]) == len(BUILT_IN.fault_kinds())
    assert told["scenario"] is None


def test_team_faults_are_not_run_unless_they_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "own.py").write_text("class X:\n    kind = 'own.x'\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    assert "own.x" not in {kind.kind for kind in examine(Asked(), {}).kinds}


def test_wrong_targets_are_refusals_too():
    assert issubclass(WrongTargetError, RefusedError)

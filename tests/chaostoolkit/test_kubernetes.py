"""chaostoolkit-kubernetes through survive: its API calls, against an API server of our own."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("chaosk8s", reason="pip install 'survive[kubernetes]'")

from survive.catalog import Catalog
from survive.contracts import Active, FaultFailedError, HandleSpec, Injection
from survive.scenario.loader import load_scenario

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "scenarios" / "live" / "kubernetes.survive.yaml"
START_S = 1.5  # of a successor


class Cluster:
    """Three pods; one that is deleted is replaced and runs a little later."""

    def __init__(self, obeys=True, status=200):
        self.obeys, self.status = obeys, status
        self.calls, self.born = [], {f"web-{n}": 0.0 for n in range(3)}
        self.lock = threading.Lock()

    def pod(self, name):
        up = time.monotonic() - self.born[name] > START_S
        return {
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"containers": []},
            "status": {"phase": "Running" if up else "Pending"},
        }

    def delete(self, name):
        """The pod as it was, as a real server answers."""
        pod = self.pod(name)
        if self.obeys:
            del self.born[name]
            self.born[f"web-{len(self.calls)}-next"] = time.monotonic()
        return pod

    def answer(self, method, path, body):
        """(status, JSON) of one call."""
        parts = urlsplit(path)
        with self.lock:
            self.calls.append((method, parts.path, parse_qs(parts.query), body))
            if self.status != 200:
                return self.status, {"kind": "Status", "message": "forbidden"}
            if method == "DELETE":
                return 200, self.delete(parts.path.rpartition("/")[2])
            if parts.path == "/":
                return 200, {"page": "fine"}
            return 200, {
                "kind": "PodList",
                "apiVersion": "v1",
                "metadata": {},
                "items": [self.pod(name) for name in self.born],
            }

    def made(self, method):
        return [call for call in self.calls if call[0] == method and call[1] != "/"]


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Start a cluster's API server (it also is the service); chaosk8s finds it."""
    servers = []

    def start(cluster):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def _do(self):
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                status, said = cluster.answer(self.command, self.path, body)
                data = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_DELETE = _do  # noqa: N815 - the library's names

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("KUBERNETES_HOST", url)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        monkeypatch.setenv("SURVIVE_KUBERNETES_URL", url)
        monkeypatch.setenv("SURVIVE_KUBERNETES_NAMESPACE", "shop")
        return cluster

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    module = sys.modules.get("survive_ext.faults.activities.runner")
    if module is not None:
        module.close_all()


def planned():
    """The injection of the committed scenario."""
    scenario = load_scenario(SCENARIO, catalog=Catalog(SCENARIO))
    fault = scenario.faults["pod-loss"]
    whole = HandleSpec("target", "target", 0, "127.0.0.1:1")
    return Injection(f"k#{os.urandom(3).hex()}", "k", fault.kind, dict(fault.settings), whole, 0,
                     None)  # fmt: skip


async def before_inject_after(injection):
    fault = Catalog(None).fault(injection.kind)
    await fault.get_ready(injection)
    before = await fault.observe(injection, None, None)
    await fault.inject(injection, None)
    return before, await fault.observe(injection, None, None)


def test_a_pod_is_deleted_by_label_and_seen_to_be_gone(serve):
    cluster = serve(Cluster())
    before, after = asyncio.run(before_inject_after(planned()))
    assert (before.active, after.active) == (Active.NO, Active.YES)
    assert (before.evidence, after.evidence) == ("verify: 3", "verify: 2")
    ((_, path, _, body),) = cluster.made("DELETE")
    assert path.startswith("/api/v1/namespaces/shop/pods/web-")
    assert body["gracePeriodSeconds"] == 0
    for _, listed, query, _ in cluster.made("GET"):
        assert listed == "/api/v1/namespaces/shop/pods" and query["labelSelector"] == ["app=web"]


def test_an_api_server_that_only_says_yes_proves_nothing(serve):
    cluster = serve(Cluster(obeys=False))
    before, after = asyncio.run(before_inject_after(planned()))
    assert cluster.made("DELETE") and (before.active, after.active) == (Active.NO, Active.NO)


def test_an_api_server_that_forbids_is_a_failed_inject(serve):
    serve(Cluster(status=403))
    fault, injection = Catalog(None).fault("chaostoolkit.once"), planned()
    with pytest.raises(FaultFailedError, match="403"):
        asyncio.run(fault.inject(injection, None))
    seen = asyncio.run(fault.observe(injection, None, None))
    assert seen.active is Active.UNKNOWN


SHORT = (
    "load.phases.steady.for=11s",
    "faults.pod-loss.at=steady + 4s",
    "objectives.comes-back.max=4s",
    "objectives.comes-back.stable_for=2s",
)


def run_scenario(tmp_path, *flags):
    sets = [part for pair in SHORT for part in ("--set", pair)]
    done = subprocess.run(
        [sys.executable, "-m", "survive", "run", SCENARIO, "--format", "json", "--out", "runs",
         *sets, *flags],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    verdict = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return done.returncode, verdict, done.stderr


@pytest.mark.alone
def test_the_scenario_runs_whole(serve, tmp_path):
    cluster = serve(Cluster())
    code, verdict, said = run_scenario(tmp_path, "--allow-privileged")
    assert code == 0, (verdict.get("reasons"), said)
    (fault,) = verdict["faults"]
    assert (fault["proof"], fault["grade"]) == ("proven", "emulated")
    assert len(cluster.made("DELETE")) == 1


@pytest.mark.parametrize(("flags", "why"), [((), "privileges"), (("--virtual",), "")])
def test_it_is_refused_without_leave_and_on_the_virtual_host(serve, tmp_path, flags, why):
    cluster = serve(Cluster())
    code, _, said = run_scenario(tmp_path, *flags)
    assert code == 6 and why in said and not cluster.made("DELETE"), said

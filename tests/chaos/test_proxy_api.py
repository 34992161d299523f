"""The fault proxy speaks Toxiproxy's API; with SURVIVE_TOXIPROXY set, a real one is held to it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import uuid

import pytest
from proxytools import REAL, SERVER, ask, server
from toxiproxy import Toxiproxy
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

UPSTREAM = "127.0.0.1:9"
embedded_only = pytest.mark.skipif(bool(REAL), reason="on purpose unlike Toxiproxy")


@pytest.fixture(scope="module")
def api():
    with server() as (address, _):
        yield address


@pytest.fixture
def name(api):
    made = f"p-{uuid.uuid4().hex[:8]}"
    status, _ = ask(api, "POST", "/proxies", {"name": made, "upstream": UPSTREAM,
                                              "listen": "127.0.0.1:0"})  # fmt: skip
    assert status == 201
    yield made
    ask(api, "DELETE", f"/proxies/{made}")


def accepts(listen):
    host, port = listen.rsplit(":", 1)
    with socket.socket() as end:
        return end.connect_ex((host, int(port))) == 0


def test_version_is_json(api):
    status, answer = ask(api, "GET", "/version")
    assert status == 200 and answer["version"]


def test_a_proxy_is_shown_with_its_assigned_port_and_all_its_fields(api, name):
    status, shown = ask(api, "GET", f"/proxies/{name}")
    assert status == 200
    assert shown["name"] == name and shown["upstream"] == UPSTREAM
    assert shown["enabled"] is True and shown["toxics"] == []
    assert not shown["listen"].endswith(":0") and accepts(shown["listen"])
    assert ask(api, "GET", "/proxies")[1][name] == shown


def test_deleting_a_proxy_closes_its_listener(api, name):
    listen = ask(api, "GET", f"/proxies/{name}")[1]["listen"]
    assert ask(api, "DELETE", f"/proxies/{name}") == (204, None)
    assert not accepts(listen)
    assert ask(api, "DELETE", f"/proxies/{name}")[0] == 404


def test_a_toxic_is_made_changed_shown_and_removed(api, name):
    toxics = f"/proxies/{name}/toxics"
    made = {"name": "latency_downstream", "type": "latency", "stream": "downstream",
            "toxicity": 1, "attributes": {"latency": 5, "jitter": 0}}  # fmt: skip
    body = {"type": "latency", "attributes": {"latency": 5}}
    assert ask(api, "POST", toxics, body) == (200, made)
    changed = {**made, "toxicity": 0.5, "attributes": {"latency": 5, "jitter": 3}}
    update = {"attributes": {"jitter": 3}, "toxicity": 0.5}
    assert ask(api, "POST", f"{toxics}/latency_downstream", update) == (200, changed)
    again = {**changed, "attributes": {"latency": 7, "jitter": 3}}
    update = {"attributes": {"latency": 7}}
    assert ask(api, "PATCH", f"{toxics}/latency_downstream", update) == (200, again)
    assert ask(api, "GET", f"{toxics}/latency_downstream") == (200, again)
    assert ask(api, "GET", toxics) == (200, [again])
    assert ask(api, "DELETE", f"{toxics}/latency_downstream") == (204, None)
    assert ask(api, "GET", toxics) == (200, [])


def test_upstream_toxics_are_listed_first(api, name):
    for toxic, stream in (("a", "downstream"), ("b", "upstream"), ("c", "downstream")):
        body = {"name": toxic, "type": "latency", "stream": stream}
        assert ask(api, "POST", f"/proxies/{name}/toxics", body)[0] == 200
    listed = ask(api, "GET", f"/proxies/{name}/toxics")[1]
    assert [toxic["name"] for toxic in listed] == ["b", "a", "c"]


@pytest.mark.parametrize(("method", "path", "body", "status", "error"), [
    ("GET", "/proxies/none", None, 404, "proxy not found"),
    ("POST", "/proxies/none", {"enabled": False}, 404, "proxy not found"),
    ("GET", "/proxies/none/toxics", None, 404, "proxy not found"),
    ("GET", "/proxies/{p}/toxics/none", None, 404, "toxic not found"),
    ("POST", "/proxies/{p}/toxics/none", {}, 404, "toxic not found"),
    ("DELETE", "/proxies/{p}/toxics/none", None, 404, "toxic not found"),
    ("POST", "/proxies", {"name": "{p}", "upstream": UPSTREAM}, 409, "proxy already exists"),
    ("POST", "/proxies", {"upstream": UPSTREAM}, 400, "missing required field: name"),
    ("POST", "/proxies", {"name": "x"}, 400, "missing required field: upstream"),
    ("POST", "/populate", [{"name": "x"}], 400, "missing required field: upstream at proxy 1"),
    ("POST", "/proxies/{p}/toxics", {"type": "none"}, 400, "invalid toxic type"),
    ("POST", "/proxies/{p}/toxics", {"type": "latency", "stream": "side"}, 400,
     "stream was invalid, can be either upstream or downstream"),
])  # fmt: skip
def test_errors_have_toxiproxys_status_and_body(api, name, method, path, body, status, error):
    sent = json.loads(json.dumps(body).replace("{p}", name))
    got, answer = ask(api, method, path.replace("{p}", name), sent)
    assert (got, answer["error"], answer["status"]) == (status, error, status)


@pytest.mark.parametrize("path", ["/proxies", "/populate", "/proxies/{p}", "/proxies/{p}/toxics"])
@pytest.mark.parametrize("body", ["nope", "", "3", '{"name": 1, "type": 1, "enabled": 1}'])
def test_a_body_that_cannot_be_read_is_400(api, name, path, body):
    status, answer = ask(api, "POST", path.replace("{p}", name), body)
    assert status == 400 and answer["error"].startswith("bad request body")


@pytest.mark.parametrize("value", ["5", 5.5, True, [5]])
def test_an_attribute_of_the_wrong_type_is_400_and_changes_nothing(api, name, value):
    body = {"type": "latency", "attributes": {"latency": value}}
    status, answer = ask(api, "POST", f"/proxies/{name}/toxics", body)
    assert status == 400 and answer["error"].startswith("bad request body")
    assert ask(api, "GET", f"/proxies/{name}/toxics") == (200, [])


def test_a_second_toxic_of_the_same_name_is_409(api, name):
    body = {"name": "one", "type": "latency"}
    assert ask(api, "POST", f"/proxies/{name}/toxics", body)[0] == 200
    status, answer = ask(api, "POST", f"/proxies/{name}/toxics", body)
    assert (status, answer) == (409, {"error": "toxic already exists", "status": 409})


@pytest.mark.parametrize(("method", "path"), [("PUT", "/proxies"), ("GET", "/reset")])
def test_a_wrong_method_is_405_and_a_wrong_path_404(api, method, path):
    assert ask(api, method, path)[0] == 405
    assert ask(api, "GET", "/nothing")[0] == 404


def test_browsers_are_refused(api):
    assert ask(api, "GET", "/version", agent="Mozilla/5.0")[0] == 403


def test_disabling_refuses_connections_and_enabling_takes_the_same_port(api, name):
    listen = ask(api, "GET", f"/proxies/{name}")[1]["listen"]
    for _ in range(3):
        status, shown = ask(api, "POST", f"/proxies/{name}", {"enabled": False})
        assert (status, shown["enabled"], shown["listen"]) == (200, False, listen)
        assert not accepts(listen)
        status, shown = ask(api, "PATCH", f"/proxies/{name}", {"enabled": True})
        assert (status, shown["enabled"], shown["listen"]) == (200, True, listen)
        assert accepts(listen)


@embedded_only
def test_the_port_of_a_disabled_proxy_cannot_be_taken(api, name):
    host, port = ask(api, "GET", f"/proxies/{name}")[1]["listen"].rsplit(":", 1)
    ask(api, "POST", f"/proxies/{name}", {"enabled": False})
    with socket.socket() as thief, pytest.raises(OSError):
        thief.bind((host, int(port)))


@embedded_only
def test_a_listener_without_a_host_is_on_loopback(api, name):
    status, made = ask(api, "POST", "/proxies", {"name": f"{name}-x", "upstream": UPSTREAM})
    assert status == 201 and made["listen"].startswith("127.0.0.1:")
    assert ask(api, "DELETE", f"/proxies/{name}-x")[0] == 204


def test_a_taken_port_is_500_and_leaves_no_proxy(api, name):
    listen = ask(api, "GET", f"/proxies/{name}")[1]["listen"]
    body = {"name": f"{name}-2", "upstream": UPSTREAM, "listen": listen}
    status, answer = ask(api, "POST", "/proxies", body)
    assert status == 500 and "address already in use" in answer["error"]
    assert ask(api, "GET", f"/proxies/{name}-2")[0] == 404


def test_reset_enables_and_removes_toxics(api, name):
    ask(api, "POST", f"/proxies/{name}/toxics", {"type": "latency"})
    ask(api, "POST", f"/proxies/{name}", {"enabled": False})
    assert ask(api, "POST", "/reset") == (204, None)
    shown = ask(api, "GET", f"/proxies/{name}")[1]
    assert shown["enabled"] is True and shown["toxics"] == []


def test_populate_keeps_what_is_the_same_and_replaces_what_differs(api, name):
    ask(api, "POST", f"/proxies/{name}/toxics", {"type": "latency", "name": "kept"})
    listen = ask(api, "GET", f"/proxies/{name}")[1]["listen"]
    same = {"name": name, "upstream": UPSTREAM, "listen": listen}
    status, answer = ask(api, "POST", "/populate", [same])
    assert status == 201
    if not REAL:  # Toxiproxy before 2.9 shows the one that it did not keep
        assert [toxic["name"] for toxic in answer["proxies"][0]["toxics"]] == ["kept"]
    other = {**same, "upstream": "127.0.0.1:10"}
    status, answer = ask(api, "POST", "/populate", [other])
    assert status == 201
    shown = ask(api, "GET", f"/proxies/{name}")[1]
    assert (shown["upstream"], shown["toxics"]) == ("127.0.0.1:10", [])


@embedded_only
@pytest.mark.parametrize(("head", "status"), [
    (b"POST /proxies HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", b"413"),
    (b"POST /proxies HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
    (b"POST /proxies HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
    (b"nonsense\r\n\r\n", b"400"),
])  # fmt: skip
def test_a_head_that_cannot_be_served_is_answered_and_ends_the_connection(api, head, status):
    host, port = api.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as end:
        end.sendall(head)
        answer = b"".join(iter(lambda: end.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_toxiproxy_python_drives_it(api):
    client = Toxiproxy()
    host, port = api.rsplit(":", 1)
    client.update_api_consumer(host, int(port))
    name = f"lib-{uuid.uuid4().hex[:8]}"
    assert client.running() and client.version()
    proxy = client.create(upstream=UPSTREAM, name=name)
    try:
        assert accepts(proxy.listen)
        with pytest.raises(ProxyExists):
            client.create(upstream=UPSTREAM, name=name)
        proxy.add_toxic(name="slow", type="latency", attributes={"latency": 9})
        assert proxy.get_toxic("slow").attributes == {"latency": 9, "jitter": 0}
        with pytest.raises(InvalidToxic):
            proxy.add_toxic(type="none")
        with proxy.down():
            assert not accepts(proxy.listen)
        assert accepts(proxy.listen)
        assert proxy.destroy_toxic("slow") and proxy.toxics() == {}
        with pytest.raises(NotFound):
            proxy.destroy_toxic("slow")
    finally:
        client.destroy(proxy)
    assert client.get_proxy(name) is None


def test_the_program_says_what_is_wrong_and_ends():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = [sys.executable, str(SERVER), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(argv, check=False, stdin=subprocess.PIPE, capture_output=True,
                              timeout=10)  # fmt: skip
    assert done.returncode == 1 and b"fault proxy:" in done.stderr and not done.stdout
    argv = [sys.executable, str(SERVER), "--port", "0"]
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=10)  # fmt: skip
    assert done.returncode == 1 and b"Traceback" not in done.stderr


def test_the_program_is_up_in_a_blink_and_ends_with_its_input():
    began = time.monotonic()
    with server():
        up = time.monotonic() - began
    assert up < 2 and time.monotonic() - began < 3

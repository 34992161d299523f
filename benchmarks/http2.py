"""What a request costs over HTTP/2: ``python benchmarks/http2.py --peers DIR``.

nginx with http2 over TLS on one core, each client on the other: CPU time of the client by request,
32 at a time, the same 6 bytes. HTTP/2 clients of Python live in an environment of their own (made
on first use): h2 by itself (sans-IO, one connection, the least code that one can write around it),
httpx, and libcurl (nghttp2) by pycurl. Found and decided: docs/decisions/0006-no-http2.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trustme

import benchmarks.load as bench

PORT = 18473
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""

COMMON = """
import json, resource, sys, time
url, authority, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
port = int(url.rsplit(":", 1)[1].strip("/"))
AT_ONCE = 32
def told(done, began):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"n": done, "cpu_s": used.ru_utime + used.ru_stime - began}))
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
"""

CURL = """
import pycurl
multi = pycurl.CurlMulti()
multi.setopt(pycurl.M_PIPELINING, pycurl.HOW)
versions = set()
def handle():
    one = pycurl.Curl()
    one.setopt(pycurl.URL, url)
    one.setopt(pycurl.CAINFO, authority)
    one.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
    one.setopt(pycurl.PIPEWAIT, pycurl.HOW == pycurl.PIPE_MULTIPLEX)
    one.setopt(pycurl.WRITEFUNCTION, lambda data: None)
    return one
handles = [handle() for _ in range(AT_ONCE)]
for one in handles:
    multi.add_handle(one)
began, end, done = cpu(), time.monotonic() + seconds, 0
while time.monotonic() < end:
    multi.perform()
    _, good, bad = multi.info_read()
    assert not bad, bad
    for one in good:
        versions.add(one.getinfo(pycurl.INFO_HTTP_VERSION))
        done += 1
        multi.remove_handle(one)
        multi.add_handle(one)
    if not good:
        multi.select(1.0)
assert versions == {pycurl.CURL_HTTP_VERSION_2_0}, versions
told(done, began)
"""

CLIENTS = {
    "h2, sans-IO": """
import socket, ssl
import h2.config, h2.connection, h2.events
context = ssl.create_default_context(cafile=authority)
context.set_alpn_protocols(["h2"])
wire = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
assert wire.selected_alpn_protocol() == "h2"
h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
h2c.initiate_connection()
head = [(b":method", b"GET"), (b":path", b"/"), (b":scheme", b"https"), (b":authority", b"localhost")]
def ask():
    h2c.send_headers(h2c.get_next_available_stream_id(), head, end_stream=True)
for _ in range(AT_ONCE):
    ask()
wire.sendall(h2c.data_to_send())
began, end, done = cpu(), time.monotonic() + seconds, 0
while time.monotonic() < end:
    for event in h2c.receive_data(wire.recv(65536)):
        if isinstance(event, h2.events.DataReceived):
            h2c.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            done += 1
            ask()
    wire.sendall(h2c.data_to_send())
told(done, began)
""",
    "httpx, http2": """
import asyncio, ssl
import httpx
done = 0
async def main():
    context = ssl.create_default_context(cafile=authority)
    async with httpx.AsyncClient(http2=True, verify=context) as client:
        answer = await client.get(url)
        assert answer.http_version == "HTTP/2"
        began, end = cpu(), time.monotonic() + seconds
        async def user():
            global done
            while time.monotonic() < end:
                await client.get(url)
                done += 1
        await asyncio.gather(*(user() for _ in range(AT_ONCE)))
        told(done, began)
asyncio.run(main())
""",
    "pycurl, http2, one connection": CURL.replace("HOW", "PIPE_MULTIPLEX"),
    "pycurl, http2, a connection each": CURL.replace("HOW", "PIPE_NOTHING"),
}


def survive(url: str, authority: Path, seconds: float, folder: Path) -> tuple[float, float]:
    """Our lanes over TLS and HTTP/1.1, far over what a core can: (µs a request, requests/s)."""
    file = folder / "http1.survive.yaml"
    file.write_text(f"""
survive: 1
name: http1
target:
  driver: external
  entry: web
  services: {{web: {{url: "{url}", ca: {authority.name}}}}}
  allow: {{hosts: [localhost]}}
requests: {{get: {{get: /, timeout: 20s}}}}
load:
  arrivals: uniform
  lanes: {bench.LANES}
  phases: [{{name: full, rate: 20000/s, for: {seconds:.0f}s}}]
objectives: {{answers: {{metric: success, min: 1%, during: run}}}}
""")
    load = bench.survive_load(file, folder, seconds + 60)
    ended = sorted((folder / "runs").glob("http1/2*"))[-1] / "events.ndjson"
    event = json.loads(ended.read_text().splitlines()[-1])  # what waits is still sent at the end
    return (
        event["usage"]["load_cores"] * event["t_us"] / load["ok"],
        load["ok"] * 1e6 / event["t_us"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, default=Path("/tmp/survive-peers"))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    python = bench.environment(asked.peers, "http2", ["httpx[http2]", "pycurl"]) / "python"
    costs: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="survive-http2-") as scratch:
        folder = Path(scratch)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            folder / "server.pem"
        )
        bench.NGINX, bench.PORT = NGINX, PORT
        url = f"https://localhost:{PORT}"
        with bench.nginx(folder):
            for _ in range(asked.rounds):
                for name, code in CLIENTS.items():
                    argv = [str(python), "-c", COMMON + code, f"{url}/", str(folder / "ca.pem")]
                    found = json.loads(bench.run([*argv, str(asked.seconds)], within_s=60))
                    costs.setdefault(name, []).append(found["cpu_s"] * 1e6 / found["n"])
                    rates.setdefault(name, []).append(found["n"] / asked.seconds)
                ours = survive(url, folder / "ca.pem", asked.seconds, folder)
                costs.setdefault("survive, HTTP/1.1", []).append(ours[0])
                rates.setdefault("survive, HTTP/1.1", []).append(ours[1])
    print(f"{bench.machine()}\n\n| client | CPU us a request | requests/s |\n|---|---|---|")
    for name, found in costs.items():
        spread = f"{statistics.median(found):.0f} ({min(found):.0f}–{max(found):.0f})"
        print(f"| {name} | {spread} | {statistics.median(rates[name]):,.0f} |")


if __name__ == "__main__":
    main()

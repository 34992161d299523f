"""A team's own locustfile: run by Locust as it is, and every request in the record."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from killtools import Started

from survive.errors import ScenarioError
from survive.judge.journeys import never_asked, with_journeys
from survive.plan.plan import make_plan
from survive.record.events import EventName
from survive.record.reader import Record
from survive.record.samples import Outcome, Series
from survive.record.table import Table
from survive.scenario.loader import load_scenario

LOCUSTFILE = """\
import os
import helper
from locust import FastHttpUser, HttpUser, SequentialTaskSet, TaskSet, constant, events, tag, task

heard = []

@events.request.add_listener
def hear(name, **_):
    heard.append(name)

@events.test_stop.add_listener
def count(**_):
    open("heard.txt", "w").write(str(len(heard)))

class Buy(SequentialTaskSet):
    def on_start(self):
        self.client.get("/login", headers={"key": os.environ["TEAM_KEY"]})

    @task
    def look(self):
        self.client.get(f"/item/{helper.item()}", name="/item/[id]")

    @task
    def pay(self):
        with self.client.post("/pay", json={}, catch_response=True) as answer:
            if "paid" not in answer.text:
                answer.failure("not paid")

class Shopper(HttpUser):
    tasks = [Buy]
    wait_time = constant(0.05)
    host = "http://127.0.0.1:1"

    def context(self):
        return {"of": "the team"}

class Watcher(FastHttpUser):
    fixed_count = 1
    wait_time = constant(0.05)

    @tag("watch")
    @task
    class Watch(TaskSet):
        @task
        def broken(self):
            self.client.get("/broken")
            self.client.get("http://127.0.0.1:1/nobody", name="nobody")
"""

SCENARIO = """\
survive: 1
name: team
target: {{driver: external, entry: web, auth: {{bearer: "${{TEAM_KEY}}"}}, services: {{web: {{url: "{url}", health: {{get: /up}}}}}}}}
load:
  locustfile: locustfile.py
  phases: [{{name: few, users: {{from: 1, to: 4}}, for: 1s}}, {{name: all, users: 4, for: {for_s}s}}]
objectives:
  sells: {{metric: success, min: 50%, of: "Shopper/item/[id]", during: run}}
  watches: {{metric: success, min: 50%, of: "Watcher/*", during: run}}
  never: {{metric: latency.p95, max: 5s, of: Shopper/refund, during: run}}
  enough: {{metric: goodput, min: 1/s, of: [Shopper/*, Nobody/*], during: run}}
"""  # noqa: E501


class Shop(ThreadingHTTPServer):
    """Counts what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        shop = self.server
        assert isinstance(shop, Shop)
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        path = "/item" if self.path.startswith("/item") else self.path
        with shop.lock:
            shop.asked[path] += 1
            if path == "/login":
                shop.keys.add(self.headers.get("key"))
            paid = shop.asked["/pay"] % 2
        body = b"paid" if paid else b"sorry"
        self.send_response(503 if path == "/broken" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    server = Shop()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def write(folder: Path, shop: Shop, locustfile: str = LOCUSTFILE, for_s: int = 1) -> Path:
    (folder / "helper.py").write_text("def item():\n    return 7\n")
    (folder / "locustfile.py").write_text(locustfile)
    file = folder / "team.survive.yaml"
    file.write_text(SCENARIO.format(url=shop.url, for_s=for_s))
    return file


def survive(file: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str]:
    monkeypatch.setenv("TEAM_KEY", "secret")
    command = [sys.executable, "-m", "survive", "run", str(file), "--out", str(file.parent / "r")]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_locustfile_runs_unchanged_and_every_request_is_recorded(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = survive(write(tmp_path, shop), monkeypatch)
    assert code == 1, said
    record = Record.load(tmp_path / "r" / "team" / "latest")
    table, kinds = record.table, record.plan.kinds
    n = {kind: table.total(Series.SEND_LAG, at) for at, kind in enumerate(kinds)}
    ok = {kind: table.total(Outcome.OK, at) for at, kind in enumerate(kinds)}

    assert set(n) == {
        "Shopper/login", "Shopper/item/[id]", "Shopper/pay", "Watcher/broken", "Watcher/nobody",
    }  # fmt: skip
    asked = shop.asked
    assert n["Shopper/login"] == asked["/login"] == 3
    assert n["Shopper/item/[id]"] == asked["/item"] > 20
    assert n["Shopper/pay"] == asked["/pay"]
    assert ok["Shopper/pay"] == (asked["/pay"] + 1) // 2
    assert n["Watcher/broken"] == asked["/broken"] and not ok["Watcher/broken"]
    assert not ok["Watcher/nobody"]
    assert table.total(Series.ATTEMPT) == sum(asked.values()) - asked["/up"]
    assert {table.why_names[why] for *_, why, _ in table.why.tolist()} == {
        "status:503", "refused", "check:not_paid",
    }  # fmt: skip
    assert shop.keys == {"secret"}
    assert int((tmp_path / "heard.txt").read_text()) == sum(n.values()), "its own listeners"
    seen = [event.text("kind") for event in record.named(EventName.KIND_SEEN)]
    assert tuple(seen) == kinds
    assert Table.from_hlog(record.folder / "latency.hlog", record.plan).same(table)

    verdict = json.loads((record.folder / "verdict.json").read_text())
    cells = {(c["name"], c["request"]): c for c in verdict["objectives"]}
    assert cells["sells", "Shopper/item/[id]"]["verdict"] == "survived"
    assert cells["watches", "Watcher/broken"]["verdict"] == "failed"
    assert "no request was called Nobody/*" in cells["enough", ""]["why"]
    assert cells["enough", ""]["verdict"] == "inconclusive"
    assert "no request was called Shopper/refund" in cells["never", "Shopper/refund"]["why"]
    assert verdict["load"]["model"] == "closed" and verdict["load"]["send_lag_ms"]["p99"] is None
    assert verdict["load"]["users"]["most"] == 4


WRONG = {
    "import locust\n\nnot_there()\n": "locustfile.py:3: NameError: name 'not_there' is not defined",
    "def broken(:\n": "locustfile.py:1: SyntaxError: invalid syntax",
    "raise SystemExit('no data')\n": "locustfile.py:1: SystemExit: no data",
    "import helper\nhelper.missing()\n": "locustfile.py:2: AttributeError: module 'helper' has no",
    "import locust\n": "locustfile.py has no users: no class of it is a Locust User",
}
READ = """\
import sys
from pathlib import Path
from survive.load.journeys import TheirsIsWrong, user_classes
for folder in sys.argv[1:]:
    try:
        user_classes(Path(folder) / "locustfile.py")
    except TheirsIsWrong as error:
        print(error)
"""


def test_what_is_wrong_with_a_locustfile_is_said_with_its_place(tmp_path: Path, shop: Shop) -> None:
    folders = [tmp_path / str(number) for number in range(len(WRONG))]
    for folder, text in zip(folders, WRONG, strict=True):
        folder.mkdir()
        write(folder, shop, text)
    command = [sys.executable, "-c", READ, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    for said, told in zip(done.stdout.splitlines(), WRONG.values(), strict=True):
        assert told in said


def test_a_locustfile_that_cannot_run_is_a_wrong_file(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = survive(write(tmp_path, shop, "import locust\n\nnot_there()\n"), monkeypatch)
    assert code == 2 and "locustfile.py:3: NameError: name 'not_there'" in said, said
    assert not list(tmp_path.glob("r/team/*/verdict.json"))


def test_an_entry_over_tls_is_verified_with_the_targets_own_authority(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    shop.socket = context.wrap_socket(shop.socket, server_side=True)
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    file = write(tmp_path, shop)
    text = (
        file.read_text()
        .replace("http://127", "https://127")
        .replace("health", "ca: ca.pem, health")
    )
    file.write_text(text)
    survive(file, monkeypatch)
    record = Record.load(tmp_path / "r" / "team" / "latest")
    assert shop.asked["/item"] > 10 and shop.asked["/broken"] > 10
    assert "tls" not in record.table.why_names


def test_users_who_never_ask_decide_nothing(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = """\
from locust import HttpUser, constant, task

class Idle(HttpUser):
    wait_time = constant(1)

    @task
    def nothing(self):
        pass
"""
    code, said = survive(write(tmp_path, shop, idle), monkeypatch)
    assert code == 3 and "no request was called Watcher/*" in said, said
    assert set(shop.asked) <= {"/up"}


def test_no_user_outlives_survive(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "secret")
    run = Started(write(tmp_path, shop, for_s=60), least=1)
    try:
        run.until("kind_seen")
        run.process.kill()
        assert run.left(2.0) == []
        asked = sum(shop.asked.values())
        time.sleep(0.3)
        assert sum(shop.asked.values()) == asked > 0
    finally:
        run.close()


def test_virtual_time_is_refused(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = survive(write(tmp_path, shop), monkeypatch, "--virtual")
    assert code == 6 and "locustfile.py cannot run in virtual time" in said


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("locustfile.py", "nowhere.py", "there is no file nowhere.py"),
        ("for: 1s}}, {{name", "think: 1s, for: 1s}}, {{name", "think for its `wait_time`"),
        ("users: {{from: 1, to: 4}}", "rate: 1/s", "phase 'few' has a rate, and others have users"),
        ("objectives", "requests: {{home: {{get: /}}}}\nobjectives", "have their own requests"),
        ("objectives", "clients: {{gives_up_after: 1s}}\nobjectives", "have their own clients"),
        ("latency.p95", "ttft.p95", "ttft is not known of a locustfile's users"),
    ],
)
def test_what_a_locustfile_leaves_no_room_for(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str
) -> None:
    file = write(tmp_path, shop)
    text = file.read_text()
    plain, put = old.format(), new.format()
    assert plain in text
    file.write_text(text.replace(plain, put, 1))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file)
    assert told in "\n".join(caught.value.lines())


def test_patterns_are_laid_over_what_was_seen(tmp_path: Path, shop: Shop) -> None:
    scenario = load_scenario(write(tmp_path, shop))
    plan = make_plan(scenario).with_kinds(["Watcher/b", "Shopper/item/[id]", "Watcher/a"])
    objectives = with_journeys(scenario, plan).objectives
    assert {name: objective.of for name, objective in objectives.items()} == {
        "sells": ("Shopper/item/[id]",),
        "watches": ("Watcher/a", "Watcher/b"),
        "never": ("Shopper/refund",),
        "enough": ("Shopper/item/[id]", "Nobody/*"),
    }
    told = {name: never_asked(objective, plan) for name, objective in objectives.items()}
    assert told == {
        "sells": "", "watches": "",
        "never": "no request was called Shopper/refund",
        "enough": "no request was called Nobody/*",
    }  # fmt: skip

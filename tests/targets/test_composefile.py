"""A compose file is understood, or refused by name: never passed over in part."""

from __future__ import annotations

from pathlib import Path

import pytest

from survive.catalog import Catalog, load_module
from survive.errors import RefusedError

ROOT = Path(__file__).resolve().parents[2]
read_compose = load_module(ROOT / "targets" / "composefile.py").read_compose

GOOD = """
x-note: {anything: goes}
services:
  web:
    image: web:1
    command: serve --port 80 'two words'
    environment: [MODE=fast, LEVEL=2]
    ports: ["127.0.0.1::80"]
    deploy: {replicas: 2, resources: {limits: {cpus: "0.5", memory: 64M}}}
    x-own: 1
"""


def read(folder, text):
    path = folder / "stack.yaml"
    path.write_text(text, encoding="utf-8")
    return read_compose(path)


def test_what_is_understood(tmp_path):
    [web] = read(tmp_path, GOOD).values()
    assert web.command == ("serve", "--port", "80", "two words")
    assert web.environment == {"MODE": "fast", "LEVEL": "2"}
    assert (web.image, web.port, web.replicas) == ("web:1", 80, 2)
    assert (web.cpus, web.memory) == (0.5, 64 << 20)


def test_our_own_file_describes_the_target_of_its_name():
    path = Catalog(ROOT).compose_file("reference")
    assert path is not None
    services = read_compose(path)
    assert sorted(services) == ["gateway", "inference", "retrieval"]
    assert {service.image for service in services.values()} == {"survive-reference"}
    assert "reference" in Catalog(ROOT).compose_names()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("image: web:1", "image: web:1\n    privileged: true", "services.web.privileged is not"),
        ("image: web:1", "build: .\n    image: web:1", "services.web.build is not understood"),
        ("    image: web:1\n", "", "services.web has no image"),
        ("web:1", "web:${TAG}", "variables are not filled in"),
        ('["127.0.0.1::80"]', '["80:80"]', "published on 127.0.0.1 only"),
        ('["127.0.0.1::80"]', '["0.0.0.0::80"]', "published on 127.0.0.1 only"),
        ('["127.0.0.1::80"]', '["127.0.0.1:80:80"]', "published on 127.0.0.1 only"),
        ('["127.0.0.1::80"]', '["80", "81"]', "exactly one port"),
        ("MODE=fast", "MODE", "has a name without a value"),
        ("64M", "64Q", "not a size"),
        ('"0.5"', "lots", "not a number of CPUs"),
        ("replicas: 2", "replicas: 0", "not a whole number"),
        ("x-note: {anything: goes}", "volumes: {}", "volumes is not understood"),
        ("services:", "services: [", "cannot be read"),
    ],
)
def test_everything_else_is_refused_by_its_place(tmp_path, old, new, said):
    assert old in GOOD
    with pytest.raises(RefusedError, match=said):
        read(tmp_path, GOOD.replace(old, new, 1))

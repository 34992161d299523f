"""Builds the docker image of the reference stack from this very machine: no registry, no network.

    python compose/build_image.py

The image holds the Python that runs this script, its standard library, the shared libraries that
the kernel's loader names for them, and what the services import; 80 MB in about ten seconds. It is
``survive-reference:latest`` at the daemon of DOCKER_HOST, and bears a digest of its content, so
that building it again without a change takes no time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.errors import ImageNotFound

ROOT = Path(__file__).resolve().parents[1]
IMAGE, TAG = "survive-reference", "latest"
DIGEST = "survive.digest"  # label
URL = "unix:///var/run/docker.sock"
WITHIN_S = 120
_PACKAGES = ("uvicorn", "click", "h11", "httptools")
_OWN = ("survive", "targets/reference")
# Parts of the standard library that no service needs, half of its size.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo",
             "ensurepip", "lib2to3", "pydoc_data"}  # fmt: skip


def main() -> None:
    """Build it unless it is there as it would be."""
    client = docker.APIClient(
        base_url=os.environ.get("DOCKER_HOST", URL), timeout=WITHIN_S, version="auto"
    )
    try:
        digest = _digest()
        if _built(client) == digest:
            print(f"{IMAGE}:{TAG} is up to date")
            return
        # By name: as a stream the package sends a body that docker cannot read.
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                _fill(tar)
            size = file.tell()
            file.flush()
            client.import_image_from_file(
                file.name,
                repository=IMAGE,
                tag=TAG,
                changes=[
                    f"LABEL {DIGEST}={digest}",
                    "ENV PYTHONPATH=/app:/app/packages",
                    f"ENV PATH={Path(sys.base_prefix, 'bin')}:/usr/bin:/bin",
                    "WORKDIR /app",
                ],
            )
        if _built(client) != digest:
            raise SystemExit(f"{IMAGE}:{TAG} was imported but is not there")
        print(f"built {IMAGE}:{TAG} ({size / 1e6:.0f} MB)")
    finally:
        client.close()


def _built(client: docker.APIClient) -> str:
    """The digest of the image that is there, "" = none."""
    try:
        labels = client.inspect_image(f"{IMAGE}:{TAG}")["Config"]["Labels"] or {}
    except ImageNotFound:
        return ""
    return str(labels.get(DIGEST, ""))


def _digest() -> str:
    """Of all that changes: our own files, this script, the Python and its packages."""
    found = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    own = [path for folder in _OWN for path in _files(ROOT / folder) if path.suffix == ".py"]
    for path in [*own, Path(__file__)]:
        found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    for name in _PACKAGES:
        found.update(str(_package(name)).encode())
    return found.hexdigest()[:16]


def _fill(tar: tarfile.TarFile) -> None:
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    tar.add(python.resolve(), str(python))
    for name in ("python3", "python"):
        _link(tar, python.with_name(name), python.name)
    linked = [python.resolve()]
    for folder in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}):
        linked += _copy(tar, Path(folder), Path(folder))
    for name in _PACKAGES:
        package = _package(name)
        linked += _copy(tar, package, Path("/app/packages") / package.name)
    for own in _OWN:
        _copy(tar, ROOT / own, Path("/app") / own)
    for library in sorted(_libraries(linked)):
        tar.add(library.resolve(), str(library))
    _text(tar, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    _folder(tar, "/tmp", 0o1777)


def _copy(tar: tarfile.TarFile, source: Path, to: Path) -> list[Path]:
    """A tree; the shared objects in it."""
    for path in _files(source):
        tar.add(path, str(to / path.relative_to(source)), recursive=False)
    return [path for path in _files(source) if path.suffix == ".so"]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name not in _LEFT_OUT and not path.name.startswith("config-"):
                yield from _files(path)
        elif path.is_file():
            yield path


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed here: run this with survive's own Python")
    return Path(spec.origin).parent


def _libraries(linked: list[Path]) -> set[Path]:
    """What the loader loads for these files, under the paths by which it finds them; itself too."""
    done = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, check=False)
    words = (word for line in done.stdout.splitlines() for word in line.split())
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def _link(tar: tarfile.TarFile, path: Path, to: str) -> None:
    entry = tarfile.TarInfo(str(path))
    entry.type, entry.linkname = tarfile.SYMTYPE, to
    tar.addfile(entry)


def _text(tar: tarfile.TarFile, path: str, text: str) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = len(text.encode())
    tar.addfile(entry, io.BytesIO(text.encode()))


def _folder(tar: tarfile.TarFile, path: str, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    tar.addfile(entry)


if __name__ == "__main__":
    main()

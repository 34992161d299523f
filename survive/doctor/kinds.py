"""Which faults can be played on this host, by their own word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.pressure import cpu_group, open_file_limit
from survive.contracts import Fault, HandleSpec, Json, check_host
from survive.doctor.findings import Lack
from survive.errors import RefusedError, WrongTargetError


@dataclass(frozen=True, slots=True)
class Place:
    """A thing of the kind that one driver supplies, and why there is none on this host."""

    spec: HandleSpec
    lack: Lack


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault on this host; ``why`` "" = it can be played."""

    kind: str
    why: str
    hint: str
    privileges: str

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {**asdict(self), "here": not self.why}


def this_process() -> HandleSpec:
    """What driver ``process`` says of a process of this host: of this one."""
    pid = os.getpid()
    return HandleSpec(
        "process",
        "process",
        0,
        "127.0.0.1:0",
        pid=pid,
        start_time=processes.start_time(pid),
        nofile=open_file_limit(pid),
        cgroup=cpu_group(pid),
    )


def isolated(spec: HandleSpec) -> HandleSpec:
    """The same with ``isolation: netns``; nobody holds that namespace."""
    return replace(spec, netns="0:0", peer_netns="0:0", resolver="127.0.0.1 process-0")


def a_container() -> HandleSpec:
    """What driver ``compose`` says of one."""
    return HandleSpec("compose", "container", 0, "127.0.0.1:0", container="none")


def places(docker: Lack, namespaces: Lack) -> list[Place]:
    """Those of all built-in drivers; a fault is played on the first that it can hit."""
    here = this_process()
    return [Place(here, Lack()), Place(isolated(here), namespaces), Place(a_container(), docker)]


def every_kind(catalog: Catalog, there: Sequence[Place]) -> list[Kind]:
    """All that the catalog knows."""
    return [_kind(catalog.fault(name), there) for name in catalog.fault_kinds()]


def _kind(fault: Fault, there: Sequence[Place]) -> Kind:
    lack = first_lack(fault, there)
    return Kind(fault.kind, lack.why, lack.hint, fault.privileges)


def first_lack(fault: Fault, there: Sequence[Place]) -> Lack:
    """Of the first place that is of the right kind."""
    lack = Lack("there is nothing that it could hit")
    for place in there:
        try:
            check_host(fault, None, place.spec)
        except WrongTargetError as error:
            lack = refusal(error, place.spec)
        except RefusedError as error:
            return place.lack or refusal(error, place.spec)
        else:
            return place.lack
    return lack


def refusal(error: RefusedError, spec: HandleSpec) -> Lack:
    """What it says of any replica; the one that was shown to it has no name."""
    return Lack(error.message.removeprefix(f"{spec.replica_id}: "), error.hint)

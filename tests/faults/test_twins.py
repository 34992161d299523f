"""Every fault of the virtual host behaves as its real twin: no kind escapes the suites of both."""

from __future__ import annotations

import pytest
import test_dependency_faults as dependency
import test_gpu_faults as gpu
import test_link_faults as links
import test_node_faults as node
import test_protocol_faults as protocol
import test_tls_faults as tls
from faultscene import play

from survive.catalog import Catalog
from survive.contracts import Needs
from survive.errors import RefusedError
from survive.scenario.model import FaultPlan
from survive.units import SECOND

# Those that their suites play on both hosts, and compare.
ON_BOTH = {
    *links.KINDS,
    *node.HELD,
    *node.ONE_SHOTS,
    *(kind for kind, _ in gpu.ALL),
    *(kind for kind, _ in dependency.ALL),
    *(kind for kind, _ in protocol.KINDS),
    tls.KIND,
}
# Those that only real hosts have, with what each has to be told.
DEED = {"provider": {"type": "http", "url": "http://127.0.0.1:1/deed"}}
PAGE = {"provider": {"type": "http", "url": "http://127.0.0.1:1/page"}, "tolerance": 200}
WHY = (
    "needs containers", "network namespaces of its own", "no process of this host", "a real card",
    "--virtual",
)  # fmt: skip
REAL_ONLY = {
    "chaostoolkit": {"inject": DEED, "heal": DEED, "verify": PAGE},
    "chaostoolkit.once": {"inject": DEED, "verify": PAGE, "irreversible": True},
    "container.cpu": {"cpus": 0.5},
    "container.memory": {"mib": 64},
    "container.network_disconnect": {},
    "container.stop": {},
    "network.dns_fail": {},
    "network.drop": {},
    "network.loss": {"share": "50%"},
    "network.netem_latency": {"latency": "100ms"},
    "network.reject": {},
    "node.clock_skew": {"ahead": "1h", "file": "clock"},
    "node.cpu": {},
    "node.cpu_limit": {"share": "50%"},
    "node.disk_full": {"path": "/tmp"},
    "node.fd_exhaustion": {},
    "node.memory": {},
    "nvidia.dcgm_report": {"field": 230, "value": 79},
    "nvidia.locked_clocks": {"share": "50%"},
    "nvidia.membw_contention": {},
    "nvidia.pcie_contention": {},
    "nvidia.power_limit": {"limit": "70%"},
    "nvidia.sm_contention": {},
    "nvidia.vram_hog": {"share": "50%"},
    "nvidia.worker_kill": {},
    "nvidia.worker_stop": {},
}


def test_every_kind_is_played_on_both_hosts_or_is_real_only():
    assert ON_BOTH | set(REAL_ONLY) == set(Catalog(plugins=False).fault_kinds())
    assert not ON_BOTH & set(REAL_ONLY)


def test_what_only_real_hosts_have_is_refused_by_the_virtual_one(tmp_path):
    async def body(scene):
        for kind, settings in REAL_ONLY.items():
            fault = Catalog().fault(kind)
            where = {"link": links.LINK} if fault.needs is Needs.LINK else {"service": "inference"}
            for_us = SECOND if fault.held else None
            plan = FaultPlan("one", kind, 0, for_us, settings=settings, **where)
            with pytest.raises(RefusedError) as refused:
                await scene.agent.preflight(plan)
            told = f"{refused.value.message} ({refused.value.hint})"
            assert any(why in told for why in WHY), told

    play("virtual", tmp_path, body, links=frozenset({links.LINK}))

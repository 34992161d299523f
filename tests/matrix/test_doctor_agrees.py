"""What ``survive doctor`` says of a kind is what the matrix found when it looked for a stage."""

from __future__ import annotations

import os

from stages import Card, Containers, Dcgm, Disk, missing, stage_of

from survive.catalog import Catalog
from survive.doctor.host import no_docker, no_namespaces
from survive.doctor.kinds import every_kind, places

# Stand-ins for a card, a daemon of the tests' own, a mount that a team may have without root.
OTHERS = (Card, Containers, Dcgm, Disk)


def test_a_kind_that_can_be_played_in_the_matrix_can_be_played():
    told = every_kind(Catalog(plugins=False), places(no_docker(os.environ), no_namespaces()))
    compared = [kind for kind in told if not issubclass(stage_of(kind.kind), OTHERS)]
    assert len(compared) > 40
    assert {k.kind: bool(k.why) for k in compared} == {
        k.kind: bool(missing(k.kind)) for k in compared
    }

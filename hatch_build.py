"""Compiles survive/load/_fastlanes.c where it is installed; without a C compiler lanes go without.

The extension lies beside its source, so an editable installation finds it too.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("survive/load/_fastlanes.c")


class CompileFastLanes(BuildHookInterface[Any]):
    """A build hook of hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is of this platform; see hatchling for the arguments."""
        if self.target_name != "wheel":
            return
        source = Path(self.root) / SOURCE
        made = source.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
        compiler = (sysconfig.get_config_var("CC") or "cc").split()
        made.unlink(missing_ok=True)
        try:
            subprocess.run(
                [*compiler, "-O2", "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}",
                 str(source), "-o", str(made)],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"{SOURCE} was not compiled, load is slower: {why.strip()}")
            return
        build_data["artifacts"].append(str(made.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

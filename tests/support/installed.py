"""Packages as pip lays them down, for tests of plugins; and an interpreter that finds them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """An installed package with one entry point, ``name = module`` or ``name = module:attribute``."""

    name: str
    group: str
    entry: str

    def install(self, folder: Path, module: str = "", code: str = "") -> None:
        """Lay the package into ``folder``: its metadata, and a module with ``code``."""
        info = folder / f"{self.name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {self.name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[{self.group}]\n{self.entry}\n")
        if module:
            (folder / f"{module}.py").write_text(code)


def run_python(code: str, path: Path) -> str:
    """Run ``code`` in a new interpreter that finds the packages in ``path``; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

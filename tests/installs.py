"""What an installation of some packages alone has: folders with nothing else in them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# It looks where its files really lie, finds this interpreter's other packages there, and loads itself twice.
_COPIED = "opencv-python"


def extra(*names: str) -> list[str]:
    """What the project asks for, alone or with extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for name in names for line in project["optional-dependencies"][name])]


def required(wanted: Iterable[str]) -> set[str]:
    """The distributions that requirements name, and those that these need, on a machine like this one."""
    found: set[tuple[str, str]] = set()
    asked = [Requirement(line) for line in wanted]
    while asked:
        asking = asked.pop()
        for part in ("", *asking.extras):
            key = (canonicalize_name(asking.name), part)
            if key in found or not _applies(asking, ""):
                continue
            found.add(key)
            lines = [Requirement(line) for line in distribution(asking.name).requires or ()]
            asked += [line for line in lines if _applies(line, part)]
    return {name for name, _ in found}


def _applies(line: Requirement, part: str) -> bool:
    return line.marker is None or line.marker.evaluate({"extra": part})


def lay(folder: Path, names: Iterable[str]) -> None:
    """Fill a folder with what these distributions have installed here, by links: as if nothing else were."""
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            there = Path(str(found.locate_file(top)))
            if name == _COPIED and there.is_dir():
                shutil.copytree(there, folder / top)
            elif not (folder / top).exists():
                (folder / top).symlink_to(there)


def run_with_only(folder: Path, program: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python code that finds the project, and of all other packages those in a folder."""
    start = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n{program}"
    command = [sys.executable, "-I", "-S", "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=150, cwd=folder)

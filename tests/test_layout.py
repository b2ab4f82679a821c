"""The house keeps its shape: who may import whom, what is packaged, what is generated."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
"""Package → folder, for those whose names differ; what lies inside ``duplex/`` is core."""
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
LEAVES = {"duplex.codecs", "duplex.thinker_talker", "duplex.transport", "duplex.web_demo"}
OUTSIDE_THE_CORE = {"aiortc", "av", "fastapi", "starlette", "uvicorn", "websockets", "torch", "onnxruntime", "httpx"}

EXCEPT = {"rates.py": {"av"}}
"""A rate belongs to a sound, not to a door, and PyAV comes with every installation."""


def composition_root(path: Path) -> bool:
    """The modules that put the pieces together."""
    return path.parent.name == "duplex" and (path.name == "serve.py" or path.name.startswith("cli"))


def room(name: str) -> str | None:
    return next((p for p in sorted(ROOMS, key=len, reverse=True) if name == p or name.startswith(p + ".")), None)


def leaf_of(name: str) -> str | None:
    """The leaf a module belongs to, also in a package of that leaf's own."""
    return next((leaf for leaf in LEAVES if name == leaf or name.startswith(leaf + ".")), None)


def folder_of(package: str) -> str:
    top = room(package)
    assert top is not None, f"{package} is packaged and lies in no folder of package-dir"
    return ROOMS[top] + package.removeprefix(top).replace(".", "/")


def modules() -> list[tuple[str, Path]]:
    """(package, file) for every module of the distribution."""
    return [(package, path) for package in PACKAGES for path in sorted((ROOT / folder_of(package)).glob("*.py"))]


def imports(package: str, path: Path) -> set[str]:
    """Absolute names of everything a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda value: getattr(value, "name", value))
def test_imports_point_inward(package: str, path: Path) -> None:
    names = imports(package, path)
    here = leaf_of(package) or room(package)
    rooms = {leaf_of(name) or room(name) for name in names} - {None, here}
    if here == "duplex" and not composition_root(path):
        assert not rooms, f"{path.name} is core and imports {rooms}"
        assert not {name.split(".")[0] for name in names} & (
            OUTSIDE_THE_CORE - {"httpx"} - EXCEPT.get(path.name, set())
        )
    elif here in LEAVES:
        assert rooms <= {"duplex"}, f"{path.name} imports another leaf: {rooms}"
        inner = {name for name in names if name.startswith("duplex.")}
        assert not any(name.startswith(("duplex.serve", "duplex.cli")) for name in inner)


def test_every_folder_with_modules_is_packaged() -> None:
    assert set(ROOMS) <= set(PACKAGES)
    tops = {path.parent for path in ROOT.glob("*/__init__.py")}
    folders = {path.parent.relative_to(ROOT).as_posix() for top in tops for path in top.rglob("__init__.py")}
    assert folders == {folder_of(package) for package in PACKAGES}
    assert all(importlib.util.find_spec(package) for package in PACKAGES)


def test_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, render in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text("utf-8") == render(), f"run: make docs ({name} is out of date)"


def test_files_stay_small() -> None:
    long = {p.name: n for _, p in modules() if (n := len(p.read_text("utf-8").splitlines())) > 520}
    assert not long, "past about 500 lines a file is two files"

"""The one-way import rule of docs/architecture.md, read from the source."""

import ast
from pathlib import Path

import pytest

import dream4d

ROOT = Path(dream4d.__file__).parent
LAYERS = [
    ("ops", "cameras", "schedules", "files"),
    ("encodings", "occupancy", "notation", "settings", "media", "picture", "run", "progress", "mesh"),
    ("fields", "presets", "meshfile"),
    ("scene",),
    ("render", "losses", "film", "state"),
    ("distill",),
    ("priors",),
    ("guidance", "static", "reconstruct", "dynamic", "personalize", "plans"),
    ("toyworld",),
    ("loading",),
    ("recipes", "doctor", "models"),
    ("evaluate",),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILE_TOUCHING = {"run", "priors", "media", "picture", "scene", "files", "toyworld", "evaluate", "meshfile"}
LIGHT = ("__init__", "__main__", "cli", "presets", "settings", "notation", "schedules", "run", "files")
HEAVY = {"torch", "numpy", "diffusers", "transformers", "numba", "av", "PIL", "rich", "safetensors", "trimesh"}


def module_name(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path, *, top_level=False):
    """Absolute module names; with `top_level` only those that importing the file loads."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(["dream4d", *path.relative_to(ROOT).parts][: -node.level]) if node.level else ""
            module = ".".join(filter(None, [package, node.module]))
            yield from ([f"dream4d.{alias.name}" for alias in node.names] if module == "dream4d" else [module])


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = module_name(path)
    assert here in RANK, f"give {here} a layer in this test and in docs/architecture.md"
    for name in imported(path):
        if name.startswith("dream4d.") and (there := name.split(".")[1]) in RANK and there != here:
            assert RANK[there] <= RANK[here], f"{here} may not import {there}"


@pytest.mark.parametrize("name", LIGHT)
def test_what_the_command_line_needs_is_light(name):
    tops = {module.split(".")[0] for module in imported(ROOT / f"{name}.py", top_level=True)}
    assert not tops & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_few_modules_touch_files(path):
    if module_name(path) in FILE_TOUCHING:
        pytest.skip("may")
    calls = {node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    names = {call.id for call in calls if isinstance(call, ast.Name)} | {
        call.attr for call in calls if isinstance(call, ast.Attribute)
    }
    assert not names & {"open", "write_text", "write_bytes", "save_file", "load_file"}

"""The layers of the package import downwards only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "unroll"

# Each part may import the parts before it in this list, and itself.
LAYERS = [
    {"errors", "types", "compiler"},
    {"calls", "checks", "tree"},
    {"data", "models", "objectives", "checkpoint"},
    {"training"},
    {"unrolling"},
    {"problem"},
    {"methods", "metrics", "memorization"},
    {"evaluation", "deletion"},
    {"report"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Packages that only one part of the library may import.
OWNERS = {
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "tensorflow": {"data"},
    "cryptography": {"deletion"},
    "dp_accounting": {"deletion"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "absl": set(),
    "ml_collections": set(),
    "torch": set(),
    "chex": set(),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = part_of(path)
    assert own in LEVEL, f"{own} has no place in the layers"
    for name in imported_names(path):
        words = name.split(".")
        if words[0] == "unroll":
            other = words[1]
            assert other == own or LEVEL[other] < LEVEL[own], f"{path.name} imports {other}"
        elif words[0] in OWNERS:
            assert own in OWNERS[words[0]], f"{own} imports {words[0]}"


def test_data_is_free_of_jax():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not {n.split(".")[0] for n in imported_names(path)} & {"jax", "flax", "optax"}


def test_methods_do_not_import_each_other():
    for path in (PACKAGE / "methods").glob("*.py"):
        if path.name != "__init__.py":
            assert not [n for n in imported_names(path) if n.startswith("unroll.methods")]


def test_no_long_files():
    tests_and_code = [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("tests/**/*.py")]
    long = {p.name: n for p in tests_and_code if (n := len(p.read_text().splitlines())) > 500}
    assert not long

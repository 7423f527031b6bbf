"""Dependencies run one way: tests and bench know rlx_gpu, that the kernels and the reference, these nothing of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from rlx_gpu.table import TABLE

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "reference", "rlx_gpu", "bench", "tests")
# What `rlx_gpu` may take from the reference beside the mathematics: declarations, formats, norms, checkpoint keys.
HELPERS = {"by_name", "checkpoint", "formats", "hyper", "matrices", "newton_schulz", "norms", "trait"}
MATHEMATICS = {"fallback", "table"}  # may reach `init_state` and `update`: by running them, and by naming the module


def files(folder):
    """The folder's Python files; the links inside rlx_gpu lead to the other folders."""
    links = [path for path in (ROOT / folder).iterdir() if path.is_symlink()]
    return sorted(
        path
        for path in (ROOT / folder).rglob("*.py")
        if not any(link in path.parents for link in links) and "__pycache__" not in path.parts
    )


def imports(path):
    """Every imported module in full, such as "rlx_gpu.reference.hyper"; names imported from a package count too."""
    folder = path.relative_to(ROOT).parent.parts
    package = folder if folder[0] == "rlx_gpu" else ("rlx_gpu", *folder)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def top(module):
    return module.split(".")[0]


def test_the_scan_finds_what_there_is():
    assert all(map(files, FOLDERS))
    found = imports(ROOT / "rlx_gpu" / "engine.py")
    assert {"torch", "rlx_gpu.plan", "rlx_gpu.plan.Plan", "rlx_gpu.reference.norms"} <= found
    assert "rlx_gpu.kernels.arithmetic" in imports(ROOT / "kernels" / "rules" / "adam.py") | imports(
        ROOT / "kernels" / "rules" / "moments.py"
    )


@pytest.mark.parametrize(("folder", "library"), [("kernels", "triton"), ("reference", "numpy")])
def test_kernels_and_reference_import_one_library_and_nothing_of_ours(folder, library):
    for path in files(folder):
        for module in imports(path):
            if top(module) == "rlx_gpu":
                assert module.startswith(f"rlx_gpu.{folder}"), f"{path.name} imports {module}"
            else:
                assert top(module) == library or top(module) in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_rules_know_neither_drivers_nor_codecs():
    allowed = {"rlx_gpu.kernels.arithmetic", "rlx_gpu.kernels.spec"}
    for path in files("kernels"):
        if path.parent.name == "rules":
            for module in imports(path):
                if module.startswith("rlx_gpu.") and not module.startswith("rlx_gpu.kernels.rules"):
                    assert any(module == one or module.startswith(f"{one}.") for one in allowed), (
                        f"{path.name}: {module}"
                    )


def test_only_the_fallback_runs_the_reference():
    """`rlx_gpu.reference` as a whole is what `rlx_gpu.norms` hands NumPy arrays to, and a name in `rlx_gpu`."""
    for path in files("rlx_gpu"):
        for module in imports(path):
            parts = module.split(".")
            if parts[:2] != ["rlx_gpu", "reference"] or len(parts) == 2:
                continue
            assert parts[2] in HELPERS, f"{path.name} imports {module}"
        if path.stem not in MATHEMATICS:
            calls = {
                node.func.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Attribute)
                and node.func.value.attr == "reference"
            }
            assert calls <= {"init_state"}, f"{path.name} runs the reference: {calls}"


def test_the_package_imports_neither_tests_nor_bench():
    for folder in ("kernels", "reference", "rlx_gpu"):
        for path in files(folder):
            for module in imports(path):
                assert top(module) not in ("tests", "bench", "pytest", "hypothesis"), f"{path.name} imports {module}"


def test_drivers_and_codecs_name_no_optimizer():
    """An optimizer that joins touches its rule, its reference and the registry; one of matrices also its routine."""
    words = {name.lower() for name in TABLE}
    for path in [*files("kernels"), *files("rlx_gpu")]:
        if path.parent.name in ("rules", "matrix") or path.name in ("table.py",) or "train" in path.parts:
            continue
        imported = {module.split(".")[-1].lower() for module in imports(path)}
        assert not imported & words, f"{path.name} imports {imported & words}"


@pytest.mark.parametrize(
    "path",
    [path for folder in FOLDERS for path in files(folder)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_short_documented_and_no_bag(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 310, "about 300 lines"
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert path.stem not in ("utils", "helpers", "misc", "common")

"""Dependencies run one way: tests and bench know rlx_gpu, that the kernels and the reference, these nothing of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from rlx_gpu.table import TABLE

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "reference", "rlx_gpu", "bench", "tests")
PRODUCT = ("kernels", "reference", "rlx_gpu")
# What `rlx_gpu` may take from the reference beside the mathematics: declarations, formats, norms, checkpoint keys.
HELPERS = {"by_name", "checkpoint", "formats", "hyper", "matrices", "newton_schulz", "norms", "trait"}
MATHEMATICS = {"table"}  # may reach `init_state` and `update`, by naming the module


def files(folder):
    """The folder's Python files; the links inside rlx_gpu lead to the other folders."""
    links = [path for path in (ROOT / folder).iterdir() if path.is_symlink()]
    return sorted(
        path
        for path in (ROOT / folder).rglob("*.py")
        if not any(link in path.parents for link in links) and "__pycache__" not in path.parts
    )


def names(path):
    """Everything that is imported, in full, such as "rlx_gpu.reference.hyper.Hyper", wherever in the file."""
    folder = path.relative_to(ROOT).parent.parts
    package = folder if folder[0] == "rlx_gpu" else ("rlx_gpu", *folder)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def imports(path):
    """Every imported module in full, such as "rlx_gpu.reference.hyper"; names imported from a package count too."""
    found = names(path)
    return found | {name.rpartition(".")[0] for name in found if "." in name}


def top(module):
    return module.split(".")[0]


def module_of(path):
    """A file's module in full, such as "rlx_gpu.kernels.codecs"; a package's is its `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "rlx_gpu" else ("rlx_gpu", *parts)).removesuffix(".__init__")


def graph():
    """Which files of the product each of them imports: at its top, in its functions, or for the type checker alone.

    An import also runs the packages on its way. Those that the file itself lies in are running already: they count only
    where something is taken from them.
    """
    known = {module_of(path): path.relative_to(ROOT).as_posix() for folder in PRODUCT for path in files(folder)}
    edges = {}
    for module, file in known.items():
        around = {package for package in known if f"{module}.".startswith(f"{package}.")}
        found = set()
        for name in names(ROOT / file):
            parts = name.split(".")
            way = [one for one in (".".join(parts[:i]) for i in range(1, len(parts) + 1)) if one in known]
            found |= {*way} - around | {*way[-1:]}
        edges[file] = {known[one] for one in found - {module}}
    return edges


def circles(edges):
    """The shortest way round through every edge that lies on a circle, once each."""
    found = set()
    for start, targets in edges.items():
        for target in targets:
            ways, seen = [[start, target]], {target}
            for way in ways:  # grows while it is read: the shortest ways come first
                if way[-1] == start:
                    first = way.index(min(way))  # a circle is written from its first name in the alphabet
                    found.add((*way[first:-1], *way[: first + 1]))
                    break
                fresh = sorted(edges[way[-1]] - seen)
                seen.update(fresh)
                ways += [[*way, one] for one in fresh]
    return sorted(found)


def test_the_scan_finds_what_there_is():
    assert all(map(files, FOLDERS))
    found = imports(ROOT / "rlx_gpu" / "engine" / "state.py")
    assert {"torch", "rlx_gpu.table", "rlx_gpu.table.Algorithm", "rlx_gpu.kernels.formats"} <= found
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
    allowed = {"rlx_gpu.kernels.arithmetic", "rlx_gpu.kernels.language", "rlx_gpu.kernels.spec"}
    for path in files("kernels"):
        if path.parent.name == "rules":
            for module in imports(path):
                if module.startswith("rlx_gpu.") and not module.startswith("rlx_gpu.kernels.rules"):
                    assert any(module == one or module.startswith(f"{one}.") for one in allowed), (
                        f"{path.name}: {module}"
                    )


def test_the_product_never_steps_with_the_reference():
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


def test_the_scan_for_circles_finds_them():
    edges = {"a": {"b"}, "b": {"c", "a"}, "c": {"a", "e"}, "d": {"a"}, "e": set()}
    assert circles(edges) == [("a", "b", "a"), ("a", "b", "c", "a")]
    found = graph()
    for file, target, whether in (
        ("rlx_gpu/parity/trial.py", "rlx_gpu/engine/devices.py", True),
        ("rlx_gpu/parity/trial.py", "rlx_gpu/engine/__init__.py", True),  # on the way to another package's module
        ("rlx_gpu/parity/storages.py", "rlx_gpu/__init__.py", False),  # the file's own package
        ("reference/trait.py", "reference/__init__.py", False),
        ("rlx_gpu/cli.py", "rlx_gpu/__init__.py", True),  # for a name that is defined there
        ("rlx_gpu/parity/variants.py", "rlx_gpu/__init__.py", True),  # as a whole
    ):
        assert (target in found[file]) == whether, f"{file}: {target}"


def test_no_files_import_each_other_in_a_circle():
    found = circles(graph())
    assert not found, "\n".join(["circles of imports:", *(" -> ".join(circle) for circle in found)])


def test_the_package_imports_neither_tests_nor_bench():
    for folder in PRODUCT:
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


def test_rooms_depend_one_way():
    """The engine knows nothing of what is built on it; the registry loads the driver of matrices by name."""
    for room, above in {
        "engine": ("matrix", "optim", "parity", "compiled", "train", "trait", "norms", "cli"),
        "matrix": ("optim", "parity", "compiled", "train", "trait", "cli"),
        "optim": ("parity", "compiled", "train", "trait", "cli", "matrix"),
        "compiled": ("parity", "train", "trait", "optim", "cli"),
    }.items():
        for path in files(f"rlx_gpu/{room}"):
            for module in imports(path):
                parts = module.split(".")
                assert parts[0] != "rlx_gpu" or len(parts) == 1 or parts[1] not in above, f"{path}: {module}"


def test_the_top_of_the_package_is_no_drawer():
    assert len([path for path in (ROOT / "rlx_gpu").iterdir() if path.is_file()]) <= 18

"""What a user installs: the wheel and the sdist are complete, the wheel works, and the lock matches the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from processes import user_environment

from rlx_gpu import doctor

pytestmark = pytest.mark.xdist_group(__name__)  # what the module prepares is made once
ROOT = Path(__file__).parent.parent
LINKED = ("kernels", "reference", "bench")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in: a build leaves files behind, which a later one would pick up."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (built,) = out.glob("*.whl")
    return built


def sources() -> set[str]:
    """Every Python file and type stub of the package, as it must be named in a distribution."""
    linked = [ROOT / name for name in LINKED]
    own = [file.relative_to(ROOT) for file in python_files(ROOT / "rlx_gpu")]
    own += [Path("rlx_gpu") / file.relative_to(ROOT) for folder in linked for file in python_files(folder)]
    return {file.as_posix() for file in own}


def python_files(folder: Path) -> list[Path]:
    """All below a folder, without following links."""
    found = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return [path for path in found if path.suffix in (".py", ".pyi")]


def test_links_are_relative() -> None:
    for name in LINKED:
        assert os.readlink(ROOT / "rlx_gpu" / name) == f"../{name}"


def test_wheel_has_every_file_under_the_one_name(wheel: Path) -> None:
    assert wheel.name.startswith("rlx_gpu-") and wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sources() <= set(names)
    assert "rlx_gpu/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rlx_gpu"}


def test_sdist_has_every_file(source: Path, tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (built,) = tmp_path.glob("rlx_gpu-*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert sources() <= names
    assert {"rlx_gpu/py.typed", "LICENSE", "pyproject.toml"} <= names


def test_wheel_works_from_a_clean_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = ["pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    code = (
        "import numpy as np, rlx_gpu\n"
        "optimizer = rlx_gpu.reference.SGD(lr=0.5)\n"
        "param = np.ones(4)\n"
        "optimizer.step('w', (4,), param, np.ones(4))\n"
        "optimizer.end_iteration()\n"
        "print(rlx_gpu.__file__, param.tolist())"
    )
    environment = user_environment(PYTHONPATH=str(site))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    file, values = done.stdout.strip().split(" ", 1)
    assert Path(file).is_relative_to(site) and values == "[0.5, 0.5, 0.5, 0.5]"
    assert (site / "bin" / "rlx-gpu").exists()


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if not line.startswith("#")]
    return dict(re.match(r"([a-z0-9.-]+)==([0-9][0-9a-z.]*)(?: ;.*)?$", line).groups() for line in lines)


def test_lock_pins_every_requirement_and_names_no_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional["dev"], *optional["train"], *optional["cli"]]
    names = {re.match(r"[A-Za-z0-9-]+", requirement).group() for requirement in wanted} - {"rlx-gpu"}
    assert names <= locked().keys()
    assert not [name for name in locked() if name.startswith(("nvidia", "cuda"))]


def test_version_is_the_same_everywhere() -> None:
    import rlx_gpu

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == rlx_gpu.__version__


def test_compile_matrix_spans_the_locked_triton() -> None:
    line = re.search(r"^TRITON_VERSIONS := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    versions = [tuple(map(int, version.split("."))) for version in line.group(1).split()]
    assert versions[0] < tuple(map(int, locked()["triton"].split("."))) < versions[-1]


def test_the_doctor_asks_for_the_versions_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = dict(re.match(r"([a-z]+)>=([0-9.]+)", one).groups() for one in project["dependencies"])
    assert {name: ".".join(map(str, version)) for name, version in doctor.OLDEST.items()} == asked

"""What `doctor` finds on this machine and on others, and what it tells to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import python, user_environment

from rlx_gpu import doctor


def test_this_machine() -> None:
    report = json.loads(python("from rlx_gpu import doctor; doctor.run(True)").stdout)
    assert report["ok"] and report["paths"]["cpu"] == "host" and report["threads"] == 1
    for name in ("rlx-gpu", "python", "numpy", "numba", "torch", "triton", "cupy", "NVIDIA driver"):
        assert name in report["versions"]


def test_interpreter() -> None:
    done = python("from rlx_gpu import doctor; raise SystemExit(doctor.run(False))", TRITON_INTERPRET="1")
    assert done.returncode == 0
    assert "a tensor on cpu   Triton kernels, interpreted" in done.stdout
    assert "Remedy: unset TRITON_INTERPRET." in done.stdout


@pytest.mark.parametrize("missing", ["torch", "triton", "cupy"])
def test_a_missing_package_is_no_breakage(missing: str) -> None:
    done = python(
        f"import sys; sys.modules['{missing}'] = None; sys.argv = ['rlx-gpu', 'doctor', '--json']\n"
        "from rlx_gpu.cli import main\nmain()"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"][missing] is None
    if missing != "cupy":
        assert any(f"pip install {missing}" == finding["remedy"] for finding in report["findings"])
    if missing == "triton":
        assert report["paths"]["cpu"] == "host"


@pytest.mark.parametrize(
    ("torch", "triton", "driver", "what", "remedy"),
    [
        ({}, {}, "580.1", "was built without CUDA", "CUDA build of torch"),
        ({"cuda": "13.0"}, {}, "470.1", "but torch sees no device", "nvidia-smi"),
        ({"cuda": "13.0", "devices": 1}, {"version": "3.5.1"}, "580.1", "triton 3.5.1 is too old", "-U triton"),
        ({"version": "2.4.0"}, {}, None, "torch 2.4.0 is too old", "-U torch"),
        ({"cuda": "13.0", "devices": 1}, None, "580.1", "tensors on a GPU cannot be stepped", "triton"),
    ],
)
def test_something_broken_is_named_with_its_remedy(
    torch: dict[str, Any],
    triton: dict[str, Any] | None,
    driver: str | None,
    what: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, torch, triton, driver)
    assert doctor.run(as_json=False) == 1
    broken = [finding for finding in doctor.examine().findings if finding.broken]
    assert len(broken) == 1 and what in broken[0].what and remedy in broken[0].remedy
    assert f"BROKEN: {broken[0].what}" in capsys.readouterr().out


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"cuda": "13.0", "devices": 2}, {}, "580.1")
    monkeypatch.setenv("CC", "cc")
    report = doctor.examine()
    assert report.paths == {"cpu": "host", "cuda": "compiled"} and not report.broken
    assert report.devices == [{"name": "Some GPU", "compute_capability": "9.0", "memory_gib": 80.0}] * 2


@pytest.mark.parametrize("package", ["numpy", "numba", "torch", "triton"])
@pytest.mark.parametrize("program", [["rlx_gpu.doctor"], ["rlx_gpu", "doctor"]], ids=" ".join)
def test_a_package_that_fails_to_import(package: str, program: list[str], tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("raise OSError('libfoo.so: cannot open shared object file')")
    command = [sys.executable, "-m", *program]
    environment = user_environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert f"BROKEN: {package} is installed but fails to import: OSError: libfoo.so" in done.stdout


def test_without_numpy_nothing_works() -> None:
    done = python("import sys; sys.modules['numpy'] = None; from rlx_gpu import doctor; sys.exit(doctor.run(True))")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and set(report["paths"].values()) == {"none"}
    assert [finding["remedy"] for finding in report["findings"] if finding["broken"]] == ["pip install numpy"]


def test_without_numba_tensors_on_the_cpu_cannot_be_stepped() -> None:
    done = python("import sys; sys.modules['numba'] = None; from rlx_gpu import doctor; sys.exit(doctor.run(True))")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["paths"]["cpu"] == "none"
    assert [finding["remedy"] for finding in report["findings"] if finding["broken"]] == ["pip install numba"]


def test_the_driver_of_the_cpu_and_its_threads() -> None:
    done = python("from rlx_gpu import doctor; doctor.run(False)", OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2")
    assert "a tensor on cpu   the same rules, compiled for the CPU by Numba, on 2 threads" in done.stdout


def pretend(
    monkeypatch: pytest.MonkeyPatch, torch: dict[str, Any], triton: dict[str, Any] | None, driver: str | None
) -> None:
    """Puts packages of these properties, and a driver, in the place of the real ones."""
    count = torch.get("devices", 0)
    properties = SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=80 << 30)
    cuda = SimpleNamespace(
        is_available=lambda: count > 0, device_count=lambda: count, get_device_properties=lambda index: properties
    )
    version = SimpleNamespace(cuda=torch.get("cuda"))
    made = SimpleNamespace(__version__=torch.get("version", "2.13.0"), version=version, cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", made)
    knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=False))
    fake = None if triton is None else SimpleNamespace(__version__=triton.get("version", "3.7.1"), knobs=knobs)
    monkeypatch.setitem(sys.modules, "triton", fake)
    monkeypatch.setattr(doctor, "driver_version", lambda: driver)
    monkeypatch.setattr(doctor, "try_step", lambda report, torch: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")

"""What this machine can run, and what is wrong if something is; a missing or broken package is a finding, no error."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

from . import __version__

CUPY_NAMES = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
OLDEST = {"numpy": (1, 26), "torch": (2, 9), "triton": (3, 6)}


@dataclass(frozen=True)
class Finding:
    """Something worth knowing.

    Args:
        broken: whether something that was asked of this machine does not work; otherwise it is a limitation.
        what: the finding, in a sentence.
        remedy: what to do about it, or empty.
    """

    broken: bool
    what: str
    remedy: str = ""


@dataclass
class Report:
    """All that was found.

    Args:
        versions: of each component; None is absent, a text that starts with "fails" could not be loaded.
        devices: name, compute capability and memory of each CUDA device that torch sees.
        paths: for a tensor on "cuda" and on "cpu", what would run: "compiled", "interpreted", "reference" or "none".
        findings: the broken ones first.
    """

    versions: dict[str, str | None] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether any finding is of something broken."""
        return any(finding.broken for finding in self.findings)


def examine() -> Report:
    """Look at this Python, its packages and this machine's devices; change nothing."""
    report = Report()
    report.versions["rlx-gpu"] = __version__
    report.versions["python"] = platform.python_version()
    report.versions["platform"] = f"{platform.system()} {platform.machine()}"
    modules = {name: load(name, report) for name in ("numpy", "torch", "triton")}
    load_cupy(report, modules["torch"])
    report.versions["NVIDIA driver"] = driver_version()
    examine_torch(report, modules["torch"])
    examine_triton(report, modules["triton"])
    if modules["numpy"] is None:
        without_numpy(report)
    if modules["torch"] is not None and "reference" in report.paths.values():
        try_step(report, modules["torch"])
    report.findings.sort(key=lambda finding: not finding.broken)
    return report


def load(name: str, report: Report) -> ModuleType | None:
    """Import a package and note its version; None, with a finding, if that fails or it is too old."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            broken_import(name, error, report)
            return None
        report.versions[name] = None
        return None
    except Exception as error:  # a package can fail in any way at import, a missing shared library for one
        broken_import(name, error, report)
        return None
    version: str = module.__version__
    report.versions[name] = version
    oldest = OLDEST[name]
    if version_numbers(version) < oldest:
        wanted = ".".join(map(str, oldest))
        report.findings.append(
            Finding(True, f"{name} {version} is too old; {wanted} is the oldest that works", f"pip install -U {name}")
        )
    return module


def broken_import(name: str, error: Exception, report: Report) -> None:
    """Note that a package is installed and cannot be imported."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    report.versions[name] = f"fails to import: {reason}"
    report.findings.append(
        Finding(True, f"{name} is installed but fails to import: {reason}", f"pip install --force-reinstall {name}")
    )


def without_numpy(report: Report) -> None:
    """Note that nothing can run: every path imports NumPy."""
    report.paths.update(dict.fromkeys(report.paths, "none"))
    if report.versions["numpy"] is None:
        report.findings.append(Finding(True, "numpy is not installed, and everything needs it", "pip install numpy"))


def load_cupy(report: Report, torch: ModuleType | None) -> None:
    """Note CuPy's version, and whether it is made for the CUDA that torch uses."""
    found = [(name, version) for name in CUPY_NAMES if (version := distribution_version(name))]
    report.versions["cupy"] = ", ".join(f"{version} ({name})" for name, version in found) or None
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        report.findings.append(Finding(True, f"{names} are both installed and overwrite each other", "uninstall one"))
    cuda = getattr(getattr(torch, "version", None), "cuda", None)
    if found and cuda and found[0][0].startswith("cupy-cuda"):
        name = found[0][0]
        wanted = f"cupy-cuda{cuda.split('.')[0]}x"
        if name != wanted:
            report.findings.append(
                Finding(
                    False,
                    f"{name} brings another CUDA than torch's {cuda}",
                    f"pip uninstall {name}; pip install {wanted}",
                )
            )


def examine_torch(report: Report, torch: ModuleType | None) -> None:
    """Note the CUDA devices, and why there are none where there should be some."""
    driver = report.versions["NVIDIA driver"]
    if torch is None:
        report.paths.update(cuda="none", cpu="none")
        if report.versions["torch"] is None:
            what = "torch is not installed: only rlx_gpu.reference, on NumPy arrays, and `rlx-gpu kernels` work"
            report.findings.append(Finding(False, what, "pip install torch"))
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            capability = f"{found.major}.{found.minor}"
            report.devices.append(
                {
                    "name": found.name,
                    "compute_capability": capability,
                    "memory_gib": round(found.total_memory / 2**30, 1),
                }
            )
            if found.major < 8:
                what = f"{found.name} has compute capability {capability}; the kernels are made for 8.0 and newer"
                report.findings.append(Finding(False, what))
        return
    if driver is None:
        report.findings.append(
            Finding(False, "there is no NVIDIA driver here, so tensors can live on the CPU only; that path is complete")
        )
    elif torch.version.cuda is None:
        what = f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} was built without CUDA"
        report.findings.append(
            Finding(True, what, "install a CUDA build of torch: pip install --force-reinstall torch")
        )
    else:
        what = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, and there is an NVIDIA driver"
            f" ({driver}), but torch sees no device"
        )
        remedy = "run nvidia-smi; update the driver if it is older than that CUDA, and check CUDA_VISIBLE_DEVICES"
        report.findings.append(Finding(True, what, remedy))


def examine_triton(report: Report, triton: ModuleType | None) -> None:
    """Decide which path tensors take, and note what keeps the kernels from running."""
    if report.versions["torch"] is None or report.versions["torch"].startswith("fails"):
        return
    has_device = bool(report.devices)
    report.paths["cpu"] = "reference"
    report.paths["cuda"] = "none"
    if triton is None:
        if report.versions["triton"] is None:
            supported = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
            what = "triton is not installed, so there are no kernels: " + (
                "tensors on a GPU cannot be stepped" if has_device else "tensors on the CPU use the NumPy reference"
            )
            remedy = "pip install triton" if supported else "use Linux on x86_64 or aarch64, where triton is published"
            report.findings.append(Finding(has_device, what, remedy))
        return
    if any(finding.broken and finding.what.startswith("triton ") for finding in report.findings):
        return
    if triton.knobs.runtime.interpret:
        report.paths.update(cpu="interpreted", cuda="interpreted" if has_device else "none")
        what = "TRITON_INTERPRET is set: the kernels are interpreted, thousands of times slower; meant for tests"
        report.findings.append(Finding(False, what, "unset TRITON_INTERPRET"))
        return
    if has_device:
        report.paths["cuda"] = "compiled"
        if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
            what = "there is no C compiler, which triton needs to build its launcher the first time a kernel runs"
            report.findings.append(Finding(True, what, "install gcc, or set CC to a compiler"))


def try_step(report: Report, torch: ModuleType) -> None:
    """Step eight numbers on each device that should work: the proof that it does."""
    for device, path in report.paths.items():
        if path == "none":
            continue
        try:
            from rlx_gpu import optim

            parameter = torch.nn.Parameter(torch.ones(8, device=device))
            parameter.grad = torch.ones_like(parameter)
            optim.SGD([parameter], lr=0.5).step()
            if parameter.tolist() != [0.5] * 8:
                raise ArithmeticError(f"SGD with lr 0.5 took 1 to {parameter[0].item()}, not to 0.5")
        except Exception as error:  # whatever it is, it belongs in the report
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            report.paths[device] = "none"
            report.findings.append(Finding(True, f"a step of SGD on {device} fails: {reason}", "see the message"))


def driver_version() -> str | None:
    """The NVIDIA driver's version; None without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi fails"
    return answer.splitlines()[0] if answer else None


def distribution_version(name: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of a version such as 2.13.0+cpu."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def as_text(report: Report) -> str:
    """The report for a person."""
    meaning = {
        "compiled": "Triton kernels, compiled",
        "interpreted": "Triton kernels, interpreted",
        "reference": "the NumPy reference",
        "none": "cannot be stepped here",
    }
    lines = ["Versions"]
    lines += [f"  {name:<14} {version or 'not installed'}" for name, version in report.versions.items()]
    lines += ["", "Devices"]
    lines += [
        f"  cuda:{index}  {device['name']}, compute capability {device['compute_capability']},"
        f" {device['memory_gib']} GiB"
        for index, device in enumerate(report.devices)
    ] or ["  no CUDA device"]
    lines += ["", "Paths"]
    lines += [f"  a tensor on {device:<5} {meaning[path]}" for device, path in report.paths.items()]
    lines += ["", "Findings" if report.findings else "No findings: everything works."]
    for finding in report.findings:
        lines.append(f"  {'BROKEN' if finding.broken else 'note'}: {finding.what}.")
        if finding.remedy:
            lines.append(f"    Remedy: {finding.remedy}.")
    return "\n".join(lines)


def run(as_json: bool) -> int:
    """Print the report; the exit code is 1 if something is broken."""
    report = examine()
    if as_json:
        print(json.dumps({**asdict(report), "ok": not report.broken}, indent=2))
    else:
        print(as_text(report))
    return int(report.broken)


if __name__ == "__main__":
    sys.exit(run("--json" in sys.argv[1:]))

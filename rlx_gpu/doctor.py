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
PATHS = {
    "compiled": "Triton kernels, compiled",
    "interpreted": "Triton kernels, interpreted",
    "host": "the same rules, compiled for the CPU by Numba",
    "none": "cannot be stepped here",
}
OLDEST = {"numpy": (1, 26), "numba": (0, 61), "torch": (2, 10), "triton": (3, 6)}


@dataclass(frozen=True)
class Finding:
    """Something worth knowing."""

    broken: bool  # something that was asked of this machine does not work; otherwise it is a limitation
    what: str
    remedy: str = ""


@dataclass
class Report:
    """All that was found."""

    versions: dict[str, str | None]  # None is absent, a text that starts with "fails" could not be loaded
    devices: list[dict[str, Any]] = field(default_factory=list)  # CUDA devices that torch sees
    paths: dict[str, str] = field(default_factory=dict)  # a key of PATHS for tensors on "cuda" and on "cpu"
    threads: int | None = None  # that step a large tensor on the CPU
    findings: list[Finding] = field(default_factory=list)  # the broken ones first

    @property
    def broken(self) -> bool:
        """Whether any finding is of something broken."""
        return any(finding.broken for finding in self.findings)

    def breakage(self, what: str, remedy: str) -> None:
        """Take note of something broken."""
        self.findings.append(Finding(True, what, remedy))

    def limitation(self, what: str, remedy: str = "") -> None:
        """Take note of something that this machine cannot do."""
        self.findings.append(Finding(False, what, remedy))


def examine() -> Report:
    """Look at this Python, its packages and this machine's devices; change nothing."""
    system = f"{platform.system()} {platform.machine()}"
    report = Report({"rlx-gpu": __version__, "python": platform.python_version(), "platform": system})
    numpy = load("numpy", report)
    numba = None if numpy is None else load("numba", report)
    torch, triton = (load(name, report) for name in ("torch", "triton"))
    load_cupy(report, torch)
    report.versions["NVIDIA driver"] = driver_version()
    examine_torch(report, torch)
    examine_triton(report, triton)
    if numpy is None:
        report.paths.update(dict.fromkeys(report.paths, "none"))  # every path imports it
        if report.versions["numpy"] is None:
            report.breakage("numpy is not installed, and everything needs it", "pip install numpy")
    elif numba is None and report.paths.get("cpu") == "host":
        report.paths["cpu"] = "none"
        if report.versions["numba"] is None:
            report.breakage("numba is not installed, and steps tensors on the CPU", "pip install numba")
    if torch is not None and "host" in report.paths.values():
        try_step(report, torch)
    report.findings.sort(key=lambda finding: not finding.broken)
    return report


def load(name: str, report: Report) -> ModuleType | None:
    """Import a package and note its version; None, with a finding, if that fails or it is too old."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a package can fail in any way at import, a missing shared library for one
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            report.versions[name] = None
            return None
        reason = first_line(error)
        report.versions[name] = f"fails to import: {reason}"
        report.breakage(f"{name} is installed but fails to import: {reason}", f"pip install --force-reinstall {name}")
        return None
    version: str = module.__version__
    report.versions[name] = version
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < OLDEST[name]:
        wanted = ".".join(map(str, OLDEST[name]))
        report.breakage(f"{name} {version} is too old; {wanted} is the oldest that works", f"pip install -U {name}")
    return module


def first_line(error: Exception) -> str:
    """An error's type, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def load_cupy(report: Report, torch: ModuleType | None) -> None:
    """Note CuPy's version, and whether it is made for the CUDA that torch uses."""
    found = {name: version for name in CUPY_NAMES if (version := distribution_version(name))}
    report.versions["cupy"] = ", ".join(f"{version} ({name})" for name, version in found.items()) or None
    if len(found) > 1:
        report.breakage(f"{' and '.join(found)} are both installed and overwrite each other", "uninstall one")
    cuda = torch.version.cuda if torch else None
    name, wanted = next(iter(found), "cupy"), f"cupy-cuda{str(cuda).split('.')[0]}x"
    if cuda and name not in ("cupy", wanted):
        remedy = f"pip uninstall {name}; pip install {wanted}"
        report.limitation(f"{name} brings another CUDA than torch's {cuda}", remedy)


def examine_torch(report: Report, torch: ModuleType | None) -> None:
    """Note the CUDA devices, and why there are none where there should be some."""
    driver = report.versions["NVIDIA driver"]
    if torch is None:
        report.paths.update(cuda="none", cpu="none")
        if report.versions["torch"] is None:
            what = "torch is not installed: only rlx_gpu.reference, on NumPy arrays, and `rlx-gpu kernels` work"
            report.limitation(what, "pip install torch")
        return
    if torch.cuda.is_available():
        for found in map(torch.cuda.get_device_properties, range(torch.cuda.device_count())):
            capability, memory = f"{found.major}.{found.minor}", round(found.total_memory / 2**30, 1)
            report.devices.append({"name": found.name, "compute_capability": capability, "memory_gib": memory})
            if found.major < 8:
                what = f"{found.name} has compute capability {capability}; the kernels are made for 8.0 and newer"
                report.limitation(what)
    elif driver is None:
        report.limitation("there is no NVIDIA driver here, so tensors can live on the CPU only; that path is complete")
    elif torch.version.cuda is None:
        what = f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} was built without CUDA"
        report.breakage(what, "install a CUDA build of torch: pip install --force-reinstall torch")
    else:
        what = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, and there is an NVIDIA driver"
            f" ({driver}), but torch sees no device"
        )
        remedy = "run nvidia-smi; update the driver if it is older than that CUDA, and check CUDA_VISIBLE_DEVICES"
        report.breakage(what, remedy)


def examine_triton(report: Report, triton: ModuleType | None) -> None:
    """Decide which path tensors take, and note what keeps the kernels from running."""
    if (report.versions["torch"] or "fails").startswith("fails"):
        return
    has_device = bool(report.devices)
    report.paths.update(cpu="host", cuda="none")
    if triton is None:
        if report.versions["triton"] is None:
            supported = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
            what = "triton is not installed, so there are no kernels: " + (
                "tensors on a GPU cannot be stepped" if has_device else "tensors on the CPU do without"
            )
            remedy = "pip install triton" if supported else "use Linux on x86_64 or aarch64, where triton is published"
            report.findings.append(Finding(has_device, what, remedy))
    elif any(finding.broken and finding.what.startswith("triton ") for finding in report.findings):
        return
    elif triton.knobs.runtime.interpret:
        report.paths.update(cpu="interpreted", cuda="interpreted" if has_device else "none")
        what = "TRITON_INTERPRET is set: the kernels are interpreted, thousands of times slower; meant for tests"
        report.limitation(what, "unset TRITON_INTERPRET")
    elif has_device:
        report.paths["cuda"] = "compiled"
        if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
            what = "there is no C compiler, which triton needs to build its launcher the first time a kernel runs"
            report.breakage(what, "install gcc, or set CC to a compiler")


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
            if path == "host":
                from rlx_gpu.engine.host import thread_count

                report.threads = thread_count()
        except Exception as error:  # whatever it is, it belongs in the report
            report.paths[device] = "none"
            report.breakage(f"a step of SGD on {device} fails: {first_line(error)}", "see the message")


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


def as_text(report: Report) -> str:
    """The report for a person."""
    lines = ["Versions"]
    lines += [f"  {name:<14} {version or 'not installed'}" for name, version in report.versions.items()]
    lines += ["", "Devices"]
    lines += [
        f"  cuda:{index}  {device['name']}, compute capability {device['compute_capability']},"
        f" {device['memory_gib']} GiB"
        for index, device in enumerate(report.devices)
    ] or ["  no CUDA device"]
    lines += ["", "Paths"]
    for device, path in report.paths.items():
        threads = f", on {report.threads} threads" if path == "host" and report.threads else ""
        lines.append(f"  a tensor on {device:<5} {PATHS[path]}{threads}")
    lines += ["", "Findings" if report.findings else "No findings: everything works."]
    for finding in report.findings:
        lines.append(f"  {'BROKEN' if finding.broken else 'note'}: {finding.what}.")
        if finding.remedy:
            lines.append(f"    Remedy: {finding.remedy}.")
    return "\n".join(lines)


def run(as_json: bool) -> int:
    """Print the report; the exit code is 1 if something is broken."""
    report = examine()
    print(json.dumps({**asdict(report), "ok": not report.broken}, indent=2) if as_json else as_text(report))
    return int(report.broken)


if __name__ == "__main__":
    sys.exit(run("--json" in sys.argv[1:]))

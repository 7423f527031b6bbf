"""Processes as a user starts them: the tests' own interprets kernels, a user's compiles them."""

from __future__ import annotations

import os
import subprocess
import sys


def user_environment(**changes: str) -> dict[str, str]:
    """This process's environment without TRITON_INTERPRET, with one thread, and with these changes."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**inherited, "OMP_NUM_THREADS": "1", **changes}


def python(code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a user's process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=user_environment(**changes))

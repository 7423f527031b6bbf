"""Processes as a user starts them: the tests' own interprets kernels, a user's compiles them."""

from __future__ import annotations

import os


def user_environment(**changes: str) -> dict[str, str]:
    """This process's environment without TRITON_INTERPRET, and with these changes."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**inherited, **changes}

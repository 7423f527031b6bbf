"""`python -m rlx_gpu` is `rlx-gpu`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()

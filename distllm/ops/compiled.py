"""Whether torch.compile is in use, asked without importing it."""

from __future__ import annotations

import sys


def anything_compiled() -> bool:
    """Whether this process may have compiled something.

    Importing the compiler takes seconds, which a process without compiled code should not spend.
    """
    return "torch._dynamo" in sys.modules

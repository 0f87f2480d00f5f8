"""Whether torch.compile is in use, asked without importing it."""

from __future__ import annotations

import sys


def anything_compiled() -> bool:
    """Whether this process may have compiled something.

    The compiler takes seconds to import, and nothing that is not compiled needs to pay for it.
    """
    return "torch._dynamo" in sys.modules

"""The marker that ends a request in a model that advances in steps."""

from __future__ import annotations

import sys
from typing import Any


class End:
    """The type of `END`."""

    def __repr__(self) -> str:
        return "END"


END: Any = getattr(sys.modules.get("_penstock_child.end"), "END", None) or End()
"""The last item of a slot: its request has ended.

In a child this module may be there twice, by its path and as a part of penstock: both have the same marker.
"""

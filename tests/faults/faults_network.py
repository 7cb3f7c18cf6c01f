"""What happens to networks: links between nodes and Redis that are slow, stall, swallow everything, or are cut."""

from __future__ import annotations

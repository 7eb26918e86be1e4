"""How long tests wait for what is to happen."""

from __future__ import annotations

# For timeouts that only end a hang. Nothing that a passing test waits for takes so long, however slow the machine is.
PATIENCE_S = 600.0

"""Settings for all properties."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How fast the machine is says nothing about our code: so there is no deadline, and too_slow, which fires when drawing
# the first values takes some seconds, is off. The checks that do not look at a clock stay on.
# `settings.default` is Hypothesis' own choice, which in CI draws the same values each time.
ANY_MACHINE = settings(settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For a property that may use a fixture of its test for one value after the other, most often a folder.
SHARED_FIXTURES = settings(
    ANY_MACHINE, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

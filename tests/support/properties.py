"""Settings for all properties."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How fast the machine is says nothing about our code: so there is no deadline, and too_slow, which fires when drawing
# the first values takes some seconds, is off. The checks that do not look at a clock stay on.
# `settings.default` is Hypothesis' own choice, which in CI draws the same values each time.
QUICK = settings(
    settings.default, max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# With --hypothesis-profile=soak.
SOAK = settings(QUICK, max_examples=100)


def shared_fixtures() -> settings:
    """For a property that may use a fixture of its test for one value after the other, most often a folder."""
    return settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def fewer_examples(by: int) -> settings:
    """For a property that takes long: that many times fewer examples than the others."""
    return settings(max_examples=max(1, settings().max_examples // by))

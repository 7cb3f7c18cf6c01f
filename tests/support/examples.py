"""How many examples Hypothesis tries: few for each push, ten times as many at night."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

PUSH, NIGHTLY = 50, 500


def register_profiles() -> None:
    """Registers the profiles `push` and `nightly`, and loads `push`. `--hypothesis-profile` loads another."""
    for name, count in (("push", PUSH), ("nightly", NIGHTLY)):
        # No deadline: the machine may be busy.
        settings.register_profile(name, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=count)
    settings.load_profile("push")


def examples(on_push: int) -> int:
    """`max_examples` for a test that needs more or fewer examples than others: so many for a push, in proportion at night."""
    return on_push * (settings().max_examples // PUSH)

"""How the properties are tried: at random for a person, the same examples each time where ``CI`` is set."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("person", deadline=None, max_examples=100, suppress_health_check=_SLOW)
settings.register_profile("ci", settings.get_profile("person"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "person")

"""Fixtures that every test may ask for by name, and how hypothesis looks for examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from support.backends import fastpath_backend
from support.engines import gateway

__all__ = ["fastpath_backend", "gateway"]

# How fast examples come, and are dealt with, says something about the machine only.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")
# The same examples in every CI run: a change is judged by what it changed.  Elsewhere hypothesis goes
# on looking for new ones, and NATENGINE_EXAMPLES says how long.
settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

"""Fixtures that every test may ask for by name, and how hypothesis looks for examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from support.backends import fastpath_backend
from support.engines import gateway

__all__ = ["fastpath_backend", "gateway"]

# How fast a machine is just now says nothing about the code.  The same examples in every CI run: a change is
# judged by what it changed.  Elsewhere hypothesis goes on looking for new ones, and NATENGINE_EXAMPLES says how long.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

"""Fixtures that every test may ask for by name."""

from support.backends import fastpath_backend
from support.engines import gateway

__all__ = ["fastpath_backend", "gateway"]

"""Fuzzers.  `make fuzz` runs them all; `python -m fuzz --help` one (in tests/)."""

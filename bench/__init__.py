"""Benchmarks: the gateway against the kernel and against NFQUEUE's own limit; see README.md."""

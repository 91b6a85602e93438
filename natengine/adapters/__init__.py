"""The edges: everything that talks to the kernel.  Nothing here knows the engine."""

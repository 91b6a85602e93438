"""The engine: one packet and the time in, a verdict and bytes out."""

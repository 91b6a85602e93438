"""natengine: a NAT gateway in user space.  Python decides, Cython repeats."""

__version__ = "0.1.0"

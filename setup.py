"""Builds the two extensions; everything else about the package is in pyproject.toml.

NATENGINE_BUILD_EXT=yes  (default) build them, and fail when that fails
NATENGINE_BUILD_EXT=no   leave them out: the engine then runs on its pure-Python twin
NATENGINE_BUILD_EXT=asan build them under AddressSanitizer, for the tests
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

CHOICE = os.environ.get("NATENGINE_BUILD_EXT", "yes")
FLAGS = {"yes": ["-O3"], "asan": ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"]}
if CHOICE != "no" and CHOICE not in FLAGS:
    raise SystemExit(f"NATENGINE_BUILD_EXT={CHOICE}: say yes, no or asan")


def extensions() -> list[Extension]:
    """The C is always made anew from the .pyx: a stale .c would be yesterday's code."""
    if CHOICE == "no":
        return []
    flags = FLAGS[CHOICE]
    modules = [
        Extension(name, [name.replace(".", "/") + ".pyx"], extra_compile_args=flags, extra_link_args=flags)
        for name in ("natengine._fastpath", "natengine.adapters._nfqueue")
    ]
    return cythonize(modules, force=True, language_level=3)


setup(ext_modules=extensions())

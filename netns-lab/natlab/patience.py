"""How long to wait on a slow machine: NATLAB_PATIENCE multiplies every deadline, and nothing else.

Deadlines say when something is broken.  On an emulated processor, where a Python start takes ten seconds and not a
fraction of one, they are too short; looser ones everywhere would make a broken thing cost minutes everywhere.
"""

from __future__ import annotations

import os

PATIENCE = max(1.0, float(os.environ.get("NATLAB_PATIENCE", "1")))

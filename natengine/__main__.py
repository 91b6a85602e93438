"""`python -m natengine`."""

import sys

from natengine.app.cli import main

sys.exit(main())

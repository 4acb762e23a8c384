"""``python -m pipeline``: the command line without an installed script."""

from __future__ import annotations

import sys

from pipeline.cli import main

sys.exit(main())

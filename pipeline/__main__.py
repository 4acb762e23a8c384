"""``python -m pipeline``: the command line without an installed script."""

from __future__ import annotations

from pipeline.cli import run

run()

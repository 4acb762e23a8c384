"""Dumps to network targets: real servers on loopback, beside what one would do otherwise.

    python -m bench.network [--rounds 3] [--case CASE] [--image NAME] [--out DIR]

s3       -d 1 zstd of 6 GiB to SeaweedFS / to a file on the same disk
sftp     -d 1 lzo of 6 GiB to sshd / makedumpfile -F -l -d 1 | ssh cat, the same sshd
link     percent of a line of 50 MB/s with 50 ms a round trip that is used while copying; the
         reference is a socket that only sends
rss      peak memory of all our processes in MiB, default settings
senders  peak memory in MiB of a receiver with 8 senders at once

Medians of pairs. Every dump is verified. Servers share the processors with what is measured, so
their CPU seconds stand beside ours. `bench/results/` gets everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.network.cases import CASES
from bench.network.rows import Row, table
from tests.lab.build import ensure_image

_RESULTS = Path(__file__).resolve().parents[1] / "results"


def _rows(asked: argparse.Namespace) -> Iterator[Row]:
    beside = ensure_image(asked.image or "bench-6g").parent
    more = {"image": asked.image} if asked.image else {}
    for name, case in CASES.items():
        if asked.case not in (None, name):
            continue
        with tempfile.TemporaryDirectory(dir=asked.out or beside) as folder:
            try:
                yield from case(Path(folder), asked.rounds, **more)
            except pytest.skip.Exception as why:  # what the lab's servers raise
                print(f"{name}: left out: {why}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.network",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--image", help="of the lab, instead of the case's own")
    parser.add_argument("--out", help="where servers and dumps go (default: beside the image)")
    rows: list[Row] = []
    for row in _rows(parser.parse_args()):
        print(row.line(), flush=True)
        rows.append(row)
    print(table(rows))
    _RESULTS.mkdir(exist_ok=True)
    seen = {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "rows": [{**asdict(row), "mark": row.mark} for row in rows],
    }
    path = _RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-network.json"
    path.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()

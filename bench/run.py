"""dumpstream beside makedumpfile, in pairs, in one run.

    python -m bench.run [--rounds 5] [--image 6g|64g] [--level 31] [--codec lzo] [--out DIR]

Each round runs ours and theirs on the same warm image, by turns who is first, writing to the same
file system; theirs with each of its thread settings once, and the best of them from then on. Ours
syncs what it has written, as users get it, and theirs never does; what a sync of theirs would take
longer stands beside its time, and is not part of the ratio. The table shows medians;
`bench/results/` gets everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import Measured, measure, settle, sync_s, warm
from tests.lab.build import ensure_image
from tests.lab.tools import makedumpfile

CODECS = ("none", "zlib", "lzo", "snappy", "zstd")
THEIR_FLAG = {"none": [], "zlib": ["-c"], "lzo": ["-l"], "snappy": ["-l"], "zstd": ["-z"]}
"""The packaged makedumpfile has no snappy: ours is set against their lzo."""
THREADS = (0, 1, 2)
IMAGES = {"6g": "bench-6g", "64g": "bench-64g-sparse"}


@dataclass(frozen=True, slots=True)
class Case:
    image: str
    level: int
    codec: str
    goal: float
    least: float


CASES = [
    *(Case("6g", 1, codec, 0.5, 0.8) for codec in CODECS),
    *(Case("6g", 31, codec, 0.7, 1.0) for codec in CODECS),
    *(Case("64g", 31, codec, 0.5, 0.9) for codec in CODECS),
    Case("64g", 1, "lzo", 0.2, 0.4),
]


def ours(case: Case, image: Path, target: Path, extra: list[str]) -> list[str]:
    """Our command line, all defaults but what the case names; the installed script, compiled."""
    script = Path(sys.executable).with_name("dumpstream")
    if not script.exists():
        raise SystemExit(f"{script} is missing: install dumpstream into this environment first")
    return [
        *[str(script), "dump", "-d", str(case.level), "--compress", case.codec],
        *["--progress", "none", "-f", *extra, str(image), str(target)],
    ]


def theirs(case: Case, image: Path, target: Path, threads: int) -> list[str]:
    """Their command line."""
    flags = [*THEIR_FLAG[case.codec], "-d", str(case.level), "--message-level", "0", "-f"]
    if threads:
        flags += ["--num-threads", str(threads)]
    return [*makedumpfile(), *flags, str(image), str(target)]


def best_threads(case: Case, image: Path, target: Path, among: list[int]) -> int:
    """Their fastest thread setting for this case, one run each."""
    if len(among) == 1:
        return among[0]
    walls = {}
    for threads in among:
        walls[threads] = checked(theirs(case, image, target, threads)).wall_s
    return min(walls, key=lambda threads: walls[threads])


def checked(argv: list[str], *, memory: bool = False) -> Measured:
    """Measure, and refuse to time a failure."""
    done = measure(argv, memory=memory)
    if done.exit_code:
        raise SystemExit(f"{' '.join(argv)}: exit code {done.exit_code}\n{done.stderr}")
    return done


def run_case(
    case: Case, image: Path, folder: Path, rounds: int, extra: list[str], among: list[int]
) -> dict[str, object]:
    """Medians of `rounds` pairs."""
    ours_at, theirs_at = folder / "ours.kdump", folder / "theirs.kdump"
    threads = best_threads(case, image, theirs_at, among)
    n_bytes = 0
    mine: list[Measured] = []
    other: list[Measured] = []
    their_sync: list[float] = []

    def run_ours() -> None:
        mine.append(checked(ours(case, image, ours_at, extra)))

    def run_theirs() -> None:
        other.append(checked(theirs(case, image, theirs_at, threads)))
        their_sync.append(sync_s(theirs_at))

    for nth in range(rounds):
        for run in (run_ours, run_theirs) if nth % 2 == 0 else (run_theirs, run_ours):
            for path in (ours_at, theirs_at):
                n_bytes = max(n_bytes, path.stat().st_size if path.exists() else 0)
                path.unlink(missing_ok=True)
            settle(n_bytes)
            run()
    # Looked at in a run of its own: looking takes time.
    my_memory = checked(ours(case, image, ours_at, extra), memory=True)
    other_memory = checked(theirs(case, image, theirs_at, threads), memory=True)
    ratios = [a.wall_s / b.wall_s for a, b in zip(mine, other, strict=True)]
    row: dict[str, object] = {
        **asdict(case),
        "ours_s": statistics.median(one.wall_s for one in mine),
        "theirs_s": statistics.median(one.wall_s for one in other),
        "theirs_sync_s": statistics.median(their_sync),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ours_cpu_s": statistics.median(one.cpu_s for one in mine),
        "theirs_cpu_s": statistics.median(one.cpu_s for one in other),
        "ours_pss": my_memory.peak_pss,
        "theirs_pss": other_memory.peak_pss,
        "ours_bytes": ours_at.stat().st_size,
        "theirs_bytes": theirs_at.stat().st_size,
        "their_threads": threads,
    }
    for path in (ours_at, theirs_at):
        path.unlink(missing_ok=True)
    return row


def table(rows: list[dict[str, object]]) -> str:
    """The figures, one line a case."""
    head = "image level codec    ours s theirs s +sync  ratio  goal least   PSS MiB  size ratio"
    lines = [head, "-" * len(head)]
    for row in rows:
        size = float(str(row["ours_bytes"])) / float(str(row["theirs_bytes"]))
        ratio, goal, least = (float(str(row[name])) for name in ("ratio", "goal", "least"))
        mark = "ok" if ratio <= goal else "least" if ratio <= least else "MISS"
        lines.append(
            f"{row['image']:>5} {row['level']:>5} {row['codec']:<7} {row['ours_s']:>7.2f} "
            f"{row['theirs_s']:>8.2f} {row['theirs_sync_s']:>5.2f} "
            f"{row['ratio']:>6.2f} {row['goal']:>5} {row['least']:>5} "
            f"{int(str(row['ours_pss'])) / 2**20:>9.0f}  {size:>8.3f}  {mark}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", choices=IMAGES)
    parser.add_argument("--level", type=int)
    parser.add_argument("--codec", choices=CODECS)
    parser.add_argument(
        "--threads", type=int, nargs="*", default=list(THREADS), help="theirs, best of"
    )
    parser.add_argument("--out", help="where the dumps go (default: beside the images)")
    parser.add_argument("--extra", default="", help="more options for ours, as one string")
    asked = parser.parse_args()
    rows = []
    for case in CASES:
        if any(
            wanted is not None and wanted != got
            for wanted, got in (
                (asked.image, case.image), (asked.level, case.level), (asked.codec, case.codec),
            )
        ):  # fmt: skip
            continue
        image = ensure_image(IMAGES[case.image])
        warm(image)
        with tempfile.TemporaryDirectory(dir=asked.out or image.parent) as folder:
            rows.append(
                run_case(
                    case, image, Path(folder), asked.rounds, asked.extra.split(), asked.threads
                )
            )
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    (results / f"{stamp}.json").write_text(
        json.dumps({"machine": platform.platform(), "cpus": os.cpu_count(), "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()

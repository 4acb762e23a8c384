"""Draws docs/figures/prefetch.svg: time of pass 1 against latency, prefetching on and off.

python -m bench.latency_figure [--rounds 3] [--image NAME]
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from bench.cache import DELAY, pass_1
from bench.measure import warm
from tests.lab.build import ensure_image

OUT = Path(__file__).resolve().parents[1] / "docs/figures/prefetch.svg"
DELAYS_MS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 120, 32, 48
COLORS = {"prefetch off": "#c0392b", "prefetch on": "#1f6feb"}


def measure(image: str, rounds: int) -> dict[str, list[float]]:
    """Median seconds for each delay; a delay of none is the plain file, for both.

    First what needs a quiet machine. Without prefetching nearly all is waiting: once is enough.
    """
    plain = statistics.median(pass_1(image) for _ in range(rounds))
    times: dict[str, list[float]] = {name: [plain] for name in COLORS}
    for delay in DELAYS_MS[1:]:
        on = [pass_1(image, f"{DELAY}={delay}") for _ in range(rounds)]
        times["prefetch on"].append(statistics.median(on))
        print(f"{delay} ms, prefetch on: {times['prefetch on'][-1]:.3f} s", flush=True)
    for delay in DELAYS_MS[1:]:
        times["prefetch off"].append(pass_1(image, f"{DELAY}={delay}", "cache.prefetch=false"))
        print(f"{delay} ms, prefetch off: {times['prefetch off'][-1]:.3f} s", flush=True)
    return times


def svg(times: dict[str, list[float]], title: str) -> str:
    """Two lines; seconds on a logarithmic scale."""
    most = max(map(max, times.values()))
    least = min(map(min, times.values()))
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(nth: int) -> float:
        return LEFT + inner_width * nth / (len(DELAYS_MS) - 1)

    def y(seconds: float) -> float:
        return TOP + inner_height * (high - math.log10(seconds)) / (high - low)

    box = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{title}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + inner_width}" y1="{at:.1f}" y2="{at:.1f}" '
            'stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>'
        )
    for nth, delay in enumerate(DELAYS_MS):
        parts.append(
            f'<text x="{x(nth):.1f}" y="{HEIGHT - 28}" text-anchor="middle">{delay:g}</text>'
        )
    parts.append(
        f'<text x="{LEFT + inner_width / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
        "milliseconds added to each request</text>"
    )
    for name, seconds in times.items():
        points = " ".join(f"{x(nth):.1f},{y(each):.1f}" for nth, each in enumerate(seconds))
        color = COLORS[name]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(nth):.1f}" cy="{y(each):.1f}" r="3" fill="{color}"/>'
            for nth, each in enumerate(seconds)
        ]
        parts.append(
            f'<text x="{LEFT + inner_width + 8}" y="{y(seconds[-1]) + 4:.1f}" fill="{color}">'
            f"{name}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default="bench-64g-sparse")
    asked = parser.parse_args()
    image = ensure_image(asked.image)
    warm(image)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    times = measure(str(image), asked.rounds)
    OUT.write_text(svg(times, "Pass 1 of a 64 GiB image, mostly free memory"), encoding="utf-8")


if __name__ == "__main__":
    main()

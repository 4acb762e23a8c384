"""Who compresses, in which batches and at which level: what `auto` becomes, with the reason."""

from __future__ import annotations

from typing import Final

from pipeline.config.budget import pages_of
from pipeline.config.reasons import Reasons
from pipeline.config.resolved import ImageFacts, MachineFacts
from pipeline.config.settings import MIB, Codec, Mode, Settings
from pipeline.memory.sizes import show_count, show_size

MODE_BY_CODEC: Final[dict[Codec, tuple[Mode, ...]]] = {
    # In order of preference; processes need an image that a forked child may read.
    "none": ("processes", "inline"),
    "zlib": ("processes", "threads"),
    "zstd": ("processes", "threads"),
    # One call a page: the hand-over of the interpreter lock eats what a second thread gains.
    "lzo": ("processes", "inline"),
    "snappy": ("processes", "inline"),
}
LEVELS: Final[dict[Codec, tuple[int, int, int]]] = {
    # lowest, highest, and what `auto` takes: the fastest, since the machine waits to reboot
    "none": (0, 0, 0),
    "zlib": (0, 9, 1),
    "lzo": (0, 0, 0),
    "snappy": (0, 0, 0),
    "zstd": (1, 22, 1),
}
MAX_AUTO_WORKERS: Final = 32

_BATCH_BYTES: Final = 2 * MIB


def choose_batch_pages(settings: Settings, image: ImageFacts, reasons: Reasons) -> int:
    """Reader and compressor pass the same batches: the smaller wish counts."""
    wishes = (settings.reader.batch_pages, settings.compressor.batch_pages)
    numbers = [wish for wish in wishes if wish != "auto"]
    if not numbers:
        n_pages = pages_of(_BATCH_BYTES, image.page_size)
        why = f"{show_size(_BATCH_BYTES)} at {image.page_size} bytes a page"
        reasons.say("reader.batch_pages", n_pages, why)
        reasons.say("compressor.batch_pages", n_pages, why)
        return n_pages
    n_pages = min(numbers)
    for key, wish in zip(("reader", "compressor"), wishes, strict=True):
        if wish != n_pages:
            why = "reader and compressor pass the same batches, the smaller counts"
            reasons.say(f"{key}.batch_pages", n_pages, why)
    return n_pages


def choose_mode(
    settings: Settings,
    machine: MachineFacts,
    image: ImageFacts,
    batch_pages: int,
    reasons: Reasons,
) -> Mode:
    codec, wanted = settings.compressor.codec, settings.compressor.mode
    if wanted == "processes" and not image.fork_safe:
        fallback: Mode = "threads" if "threads" in MODE_BY_CODEC[codec] else "inline"
        reasons.say("compressor.mode", fallback, "forked workers cannot read this image")
        return fallback
    if wanted != "auto":
        return wanted
    mode, why = _auto_mode(codec, machine, image, batch_pages, settings.compressor.workers)
    reasons.say("compressor.mode", mode, why)
    return mode


def _auto_mode(
    codec: Codec, machine: MachineFacts, image: ImageFacts, batch_pages: int, workers: int | str
) -> tuple[Mode, str]:
    if machine.n_cpus == 1:
        return "inline", f"one CPU ({machine.cpus_why})"
    if workers == 1:
        return "inline", "a single worker gains nothing over none"
    if image.n_pages is not None and image.n_pages <= batch_pages:
        return "inline", f"a single batch holds {show_count(image.n_pages, 'page')}"
    mode = next(m for m in MODE_BY_CODEC[codec] if m != "processes" or image.fork_safe)
    if mode == "processes":
        return mode, f"fastest for {codec}, and forked workers can read the image"
    return mode, f"best for {codec} where forked workers cannot read the image"


def choose_workers(
    settings: Settings,
    machine: MachineFacts,
    image: ImageFacts,
    mode: Mode,
    batch_pages: int,
    reasons: Reasons,
) -> int:
    wanted = settings.compressor.workers
    if mode == "inline":
        reasons.say("compressor.workers", 1, "inline: the main process itself")
        return 1
    workers = min(machine.n_cpus, MAX_AUTO_WORKERS) if wanted == "auto" else wanted
    if wanted == "auto":
        reasons.say(
            "compressor.workers", workers, f"{machine.cpus_why}, {MAX_AUTO_WORKERS} at most"
        )
    if image.n_pages is not None:
        n_batches = max(-(-image.n_pages // batch_pages), 1)
        if workers > n_batches:
            why = f"{show_count(image.n_pages, 'page')}, no more batches"
            reasons.say("compressor.workers", n_batches, why)
        workers = min(workers, n_batches)
    return workers


def choose_sharing(settings: Settings, reasons: Reasons) -> bool:
    """Whether copies of a page are looked for: 3 % of a run at level 31 without compression."""
    wanted = settings.compressor.share_identical
    if wanted != "auto":
        return wanted
    shares = settings.compressor.codec != "none"
    why = "finding copies costs less than compressing them"
    if not shares:
        why = "finding copies costs more than writing them"
    reasons.say("compressor.share_identical", shares, why)
    return shares


def choose_level(settings: Settings, reasons: Reasons) -> int:
    codec, wanted = settings.compressor.codec, settings.compressor.level
    low, high, auto = LEVELS[codec]
    if wanted == "auto":
        why = f"the fastest {codec} has" if high else f"{codec} has no levels"
        reasons.say("compressor.level", auto, why)
        return auto
    level = min(max(wanted, low), high)
    if level != wanted:
        # A level left over from another codec must not cost the dump.
        why = f"{codec} has levels {low} to {high}" if high else f"{codec} has no levels"
        reasons.say("compressor.level", level, f"{wanted} asked for, but {why}")
    return level

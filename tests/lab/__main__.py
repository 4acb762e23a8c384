"""The lab's command line.

python -m tests.lab list                 the images, and which are built
python -m tests.lab build [NAME...]      build images (all small ones without a name)
python -m tests.lab path NAME            where an image is; builds it if need be
python -m tests.lab tools [--install] [--symbols KERNEL...]   fetch the oracles
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.lab import tools
from tests.lab.build import ensure_image, ensure_images, ensure_oracle_image, image_folder, sidecar
from tests.lab.catalog import IMAGES
from tests.lab.commands import LabError
from tests.lab.kernels import KERNELS

PROGRAMS = {"makedumpfile": tools.makedumpfile, "crash": tools.crash}


def _list() -> None:
    for image in IMAGES.values():
        state = "not built"
        if image_folder(image).is_dir():
            known = sidecar(image.name)
            state = f"{known['allocated_bytes'] / 1e9:.1f} GB, built in {known['seconds']:.0f} s"
        memory = f"{image.memory_mib / 1024:g} GiB"
        words = (image.kernel, f"{image.paging_levels} levels", memory, image.method.value, state)
        print(f"{image.name:18} " + ", ".join(words))


def _build(names: list[str]) -> None:
    wanted = names or [image.name for image in IMAGES.values() if not image.bench]
    for name, path in ensure_images(wanted).items():
        print(f"{name:18} {sidecar(name)['seconds']:6.1f} s  {path}")


def _tools(*, install: bool, symbols: list[str]) -> None:
    if install:
        tools.install()
    with ThreadPoolExecutor(4) as pool:
        programs = {name: pool.submit(fetch) for name, fetch in PROGRAMS.items()}
        drgn = pool.submit(tools.ensure_drgn)
        files = {kernel: pool.submit(tools.vmlinux, kernel) for kernel in symbols}
    for name, program in programs.items():
        print(f"{name:12} {' '.join(program.result())}")
    print(f"{'drgn':12} {drgn.result()}")
    for kernel, file in files.items():
        print(f"vmlinux {kernel:4} {file.result()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Real crash dumps.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the images, and which are built")
    build = commands.add_parser("build", help="build images; all small ones without a name")
    build.add_argument("names", nargs="*", metavar="NAME", choices=[*IMAGES, []])
    path = commands.add_parser("path", help="where an image is; builds it if need be")
    path.add_argument("name", choices=IMAGES)
    path.add_argument("--oracle", action="store_true", help="the variant that makedumpfile reads")
    fetch = commands.add_parser("tools", help="fetch makedumpfile, crash and drgn")
    fetch.add_argument("--install", action="store_true", help="install the Debian packages needed")
    fetch.add_argument("--symbols", nargs="+", default=[], metavar="KERNEL", choices=KERNELS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0 if it worked."""
    options = _parser().parse_args(argv)
    started = time.monotonic()
    try:
        match options.command:
            case "list":
                _list()
            case "build":
                _build(options.names)
            case "path":
                print((ensure_oracle_image if options.oracle else ensure_image)(options.name))
            case _:
                _tools(install=options.install, symbols=options.symbols)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    if options.command in ("build", "tools"):
        print(f"{time.monotonic() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The commands beside `dump`: open an image, ask one question, print the answer."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from pipeline.config.arguments import POLICIES
from pipeline.errors import EXIT_DONE, EXIT_FAILED, UsageError
from pipeline.memory.sizes import parse_size, show_count, show_size
from pipeline.obs.log import configure_log
from pipeline.obs.output import printing
from pipeline.obs.plain import json_text
from pipeline.run import assemble

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pipeline.config.dump_arguments import Given
    from pipeline.config.layers import LoadedSettings
    from pipeline.config.request import DumpRequest

_REPLAY_CAPACITIES: Final = ("64KiB", "128KiB", "256KiB", "1MiB", "8MiB")
_MAX_REPLAY_BYTES: Final = 1 << 40
_MAX_BLOCK_PAGES: Final = 4096


def run_plan(request: DumpRequest, loaded: LoadedSettings, as_json: bool) -> int:
    """Print what a dump with these arguments would run, and why; reads only the image's head."""
    from pipeline.config.auto import resolve
    from pipeline.config.machine import read_machine
    from pipeline.config.show_plan import plan_json, plan_text

    assemble.check_request(request, loaded)
    with assemble.opened_source(request.source, loaded.settings) as image:
        facts = assemble.image_facts(image, request, loaded.settings)
    resolved = resolve(loaded.settings, read_machine(), facts)
    show = plan_json if as_json else plan_text
    with printing():
        sys.stdout.write(show(resolved, loaded))
        sys.stdout.flush()
    return EXIT_DONE


def run_info(source: str, as_json: bool) -> int:
    """Print what the image is and how its pages divide into classes."""
    import anyio

    with assemble.opened_source(source) as image:
        facts = anyio.run(assemble.inspector("info").describe, image)
    if as_json:
        _print_json(facts)
    else:
        _print_lines(assemble.inspector("info").info_lines(facts))
    return EXIT_DONE


def run_verify(dump: str, against: str | None, *, full: bool = False) -> int:
    """Check every page of a dump, and with `against` compare it with its source.

    A dump that is kept elsewhere is checked where it is, by its manifest, unless it is compared.
    """
    if "://" in dump and against is None:
        return _verify_stored(dump, full=full)
    with ExitStack() as images:
        image = images.enter_context(assemble.opened_source(dump))
        source = None
        if against is not None:
            source = images.enter_context(assemble.opened_source(against))
        found = assemble.inspector("verify").verify_dump(image, source)
    _print_lines(found.lines())
    return EXIT_DONE if found.ok else EXIT_FAILED


def _verify_stored(dump: str, *, full: bool) -> int:
    import os

    import anyio

    from pipeline.config.layers import load_settings

    settings = load_settings(environ=os.environ).settings
    verify = assemble.inspector("verify_stored")
    stored = assemble.stored_dump(dump, settings)

    async def check() -> Any:
        return await verify.verify_stored(stored, settings.net, full=full)

    found = anyio.run(check)
    _print_lines(found.lines())
    return EXIT_DONE if found.ok else EXIT_FAILED


def run_estimate(source: str, target: str | None, as_json: bool) -> int:
    """Print how large dumps of `source` would be, and how long sending them takes."""
    import os

    import anyio

    from pipeline.config.auto import LEVELS
    from pipeline.config.layers import load_settings

    if target is not None:
        assemble.check_target(target)
    settings = load_settings(environ=os.environ).settings
    codec_levels = {codec: auto for codec, (_, _, auto) in LEVELS.items()}

    async def ask() -> Any:
        kernel = await assemble.need_kernel(image) if image.info.vmcoreinfo else None
        found = await assemble.inspector("estimate").estimate(image, kernel, codec_levels)
        if target is not None:
            found.target = await assemble.measure_target(target, settings)
        return found

    with assemble.opened_source(source, settings) as image:
        found = anyio.run(ask)
    if as_json:
        _print_json(found.as_dict())
    else:
        _print_lines(found.lines())
    return EXIT_DONE


def run_translate(source: str, vaddrs: Sequence[str], as_json: bool) -> int:
    """Print each step of the walk for each address; fails if any has no physical address."""
    import anyio

    translate = assemble.inspector("translate")
    wanted = [translate.parse_address(text) for text in vaddrs]

    async def ask() -> list[Any]:
        kernel = await assemble.need_kernel(image)
        return [await translate.translate(kernel, image, vaddr) for vaddr in wanted]

    with assemble.opened_source(source) as image:
        found = anyio.run(ask)
    if as_json:
        _print_json([one.as_dict() for one in found])
    else:
        for one in found:
            _print_lines(one.lines())
    return EXIT_DONE if all(one.found for one in found) else EXIT_FAILED


def run_dmesg(source: str) -> int:
    """Print the kernel log as dmesg does."""
    import anyio

    async def show() -> None:
        kernel = await assemble.need_kernel(image)
        async for piece in assemble.inspector("dmesg").read_log(kernel):
            with printing():
                sys.stdout.buffer.write(piece)

    with assemble.opened_source(source) as image:
        try:
            anyio.run(show)
        finally:
            with printing():
                sys.stdout.flush()
    return EXIT_DONE


def run_trace_record(source: str, out: str) -> int:
    """Write what pass 1 on `source` asks of the page cache to the new file `out`."""
    import anyio

    with assemble.opened_source(source) as image:
        n_requests = anyio.run(assemble.inspector("trace").record, image, out)
    _print_lines([f"{show_count(n_requests, 'request')} recorded in {out}"])
    return EXIT_DONE


def run_trace_replay(arguments: Namespace) -> int:
    """Print what other policies and sizes would have made of a recorded run."""
    capacities = [_capacity(text) for text in arguments.capacity or _REPLAY_CAPACITIES]
    if not 1 <= arguments.block_pages <= _MAX_BLOCK_PAGES:
        raise UsageError(f"--block-pages: expected 1 to {_MAX_BLOCK_PAGES}")
    if not 0 <= arguments.latency_ms < math.inf:
        raise UsageError("--latency-ms: expected 0 or more")
    rows = list(
        assemble.inspector("trace").replay(
            arguments.file,
            policies=arguments.policy or POLICIES,
            capacities=capacities,
            latency_ms=arguments.latency_ms,
            block_pages=arguments.block_pages,
        )
    )
    if arguments.json:
        _print_json([{**asdict(row), "hit_ratio": row.hit_ratio} for row in rows])
    else:
        _print_lines(assemble.inspector("trace").table(rows))
    return EXIT_DONE


def _capacity(text: str) -> int:
    try:
        capacity = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--capacity: {error}") from error
    if not 1 <= capacity <= _MAX_REPLAY_BYTES:
        raise UsageError(f"--capacity: expected 1 to {_MAX_REPLAY_BYTES} bytes")
    return capacity


def run_receive(arguments: Namespace) -> int:
    """Take dumps in, or rebuild one from a flattened stream."""
    names: list[str] = arguments.target
    from_stream = names[0] == "-" and len(names) == 2
    if from_stream == (arguments.listen is not None) or not (from_stream or len(names) == 1):
        raise UsageError("receive takes --listen HOST:PORT DIR, or - FILE")
    receive = assemble.transport()
    return int(
        receive.run_receive(
            receive.ReceiveRequest(
                listen=arguments.listen,
                target=names[-1],
                tls_cert=arguments.tls_cert,
                tls_key=arguments.tls_key,
                tls_client_ca=arguments.tls_client_ca,
                max_bytes=arguments.max_bytes,
                max_dumps=arguments.max_dumps,
                max_rate=arguments.max_rate,
                overwrite=arguments.force,
            )
        )
    )


def run_resume(journal: str, reports: Iterable[Given]) -> int:
    """Go on with the upload that `journal` is about; what it says decides, beside `reports`."""
    from pipeline.config.layers import Layer, load_settings
    from pipeline.config.request import DumpRequest
    from pipeline.run.dump import run_dump

    source, target, values, encrypt_to = assemble.read_journal(journal)
    options = [Layer(each.option, {each.key: each.value}) for each in reports]
    loaded = load_settings(options=[Layer(journal, values), *options])
    configure_log(loaded.settings.run.log_format, loaded.settings.run.log_level)
    request = DumpRequest(source, target, encrypt_to=encrypt_to, journal=journal)
    return run_dump(request, loaded)


def run_keygen(path: str | None) -> int:
    """Make a key to encrypt dumps to."""
    with printing():  # of a file it names the errors itself
        return int(assemble.crypt().run_keygen(path))


def run_decrypt(source: str, target: str, identity: str, *, overwrite: bool) -> int:
    """Decrypt `source` into `target`."""
    return int(assemble.crypt().run_decrypt(source, target, identity, overwrite=overwrite))


def run_demo(directory: str | None) -> int:
    """Build a small kernel-shaped image, dump it at level 31, verify the dump, show the table."""
    import tempfile
    from pathlib import Path

    from pipeline.config.layers import Layer, load_settings
    from pipeline.config.request import DumpRequest
    from pipeline.run.dump import run_dump

    demo = assemble.inspector("demo")
    folder = Path(directory or tempfile.mkdtemp(prefix="dumpstream-demo-"))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--directory: {folder} is not a directory")
    folder.mkdir(parents=True, exist_ok=True)
    image, target = folder / "vmcore", folder / "dump.kdump"
    for path in (image, target):
        if path.exists() or path.is_symlink():  # it may be a real one
            raise UsageError(f"{path}: exists; the demo replaces nothing, name another folder")
    facts = demo.build(image)
    _print_lines([f"built     {image}: Linux {facts.release}, {_size(image)}"])
    wanted = {"dump.level": 31, "run.log_level": "error"}
    loaded = load_settings(options=[Layer("demo", wanted)])
    configure_log("auto", "error")  # the image has oddities on purpose
    code = run_dump(DumpRequest(str(image), str(target)), loaded)
    if code != EXIT_DONE:
        return code
    _print_lines([f"dumped    {target}: level 31, zstd, {_size(target)}", ""])
    _print_lines([*demo.table(facts, 31), ""])
    problems = demo.check_page_set(target, facts, 31)
    _print_lines(problems)
    verified = run_verify(str(target), str(image))
    _print_lines(["", f"the files stay in {folder}"])
    return EXIT_FAILED if problems else verified


def _size(path: Path) -> str:
    return show_size(path.stat().st_size)


def _print_lines(lines: Iterable[str]) -> None:
    with printing():
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _print_json(value: object) -> None:
    with printing():
        sys.stdout.buffer.write(json_text(value))
        sys.stdout.flush()

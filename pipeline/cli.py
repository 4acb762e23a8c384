"""The command line: arguments in, exit code out.

Only argument parsing and exit codes live here. Everything heavy is imported by the command that
needs it, so that ``--help`` answers at once and a capture kernel loads what it uses.

Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 3 an incomplete but usable dump was left;
141 the reader of a report went away, which is no failure and no line on standard error.
Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from pipeline.config.arguments import make_parser
from pipeline.config.dump_arguments import given_settings
from pipeline.errors import (
    EXIT_DONE,
    ClosedOutputError,
    DumpError,
    UsageError,
    exit_code,
    full_text,
)
from pipeline.obs.output import printing
from pipeline.obs.plain import one_line

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import NoReturn

    from pipeline.config.layers import LoadedSettings
    from pipeline.config.request import DumpRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is without the program's name, that of the process when None."""
    # numpy's BLAS starts a thread a core, which nothing here uses: 50 ms of CPU and 2 MiB each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = sys.argv[1:] if argv is None else argv
    _hold_standard_files()
    if argv is None and "--debug" not in words:
        sys.unraisablehook = _ignore  # a destructor's complaints are no news to the user
    try:
        _end_in_order()
        code = _run(words)
        if sys.stdout is not None:
            with printing():
                sys.stdout.flush()
    except BaseException as error:
        if "--debug" in words:
            _show_traceback(error)
        return _report(error)
    return code


def _run(words: Sequence[str]) -> int:
    try:
        with printing():  # help and version
            arguments = make_parser(words[0] if words else None).parse_args(words)
    except SystemExit as end:  # they are out, or the usage error is
        return end.code if isinstance(end.code, int) else EXIT_DONE
    if sys.stdout is None and _needs_standard_output(arguments):
        raise UsageError("standard output is closed")
    form = getattr(arguments, "log_format", None)
    if form is not None:  # what is wrong with the settings is told in it, too
        from pipeline.obs.log import configure_log

        configure_log(form)
    return _COMMANDS[arguments.command](arguments)


def _hold_standard_files() -> None:
    """Keep a dump from being opened as descriptor 0, 1 or 2 when one of those came closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # For reading: what is written there must fail, not vanish.
            os.open(os.devnull, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names from an image may hold any byte.
        sys.stdout.reconfigure(errors="backslashreplace")


def _needs_standard_output(arguments: Namespace) -> bool:
    """False for what has files to write, and nothing to print."""
    if arguments.command == "dump":
        return "-" in (arguments.target, *arguments.also)
    return arguments.command not in {"decrypt", "resume"}


def _end_in_order() -> None:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, unless whoever started it ignores them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            # asyncio takes over SIGINT if its handler is the usual one, and no other.
            ours = signal.default_int_handler if number == signal.SIGINT else _terminate
            signal.signal(number, ours)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _ignore(_what: object) -> None:
    """Takes the place of a hook that prints."""


def _report(error: BaseException) -> int:
    """Say in one line what ended the command; the exit code for it."""
    from pipeline.obs.log import asked_for_json, log_event

    code = exit_code(error)
    if isinstance(error, ClosedOutputError):
        _drop_standard_output()
    elif asked_for_json():
        log_event("run_failed", "error", text=_said(error), exit_code=code)
    else:
        _say(f"dumpstream: error: {one_line(_said(error))}\n")
    return code


def _say(line: str) -> None:
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # standard error is gone; the exit code still tells


def _said(error: BaseException) -> str:
    match error:
        case KeyboardInterrupt():
            return "interrupted"
        case DumpError():
            return full_text(error)
        case OSError(strerror=str(why), filename=str(name)):
            return f"{name}: {why}"
        case OSError():
            return error.strerror or str(error) or type(error).__name__
        case MemoryError():
            return "out of memory; a smaller memory.budget takes less"
        case _:
            return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _show_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


def _drop_standard_output() -> None:
    """Let the interpreter flush what is left to nowhere instead of complaining at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _settings(arguments: Namespace) -> LoadedSettings:
    """All layers of settings; the log is set up by them."""
    from pipeline.config.layers import Layer, load_settings
    from pipeline.obs.log import configure_log

    options = [Layer(each.option, {each.key: each.value}) for each in given_settings(arguments)]
    loaded = load_settings(
        profile=arguments.profile,
        config_file=arguments.config,
        environ=os.environ,
        sets=arguments.sets,
        options=options,
    )
    configure_log(loaded.settings.run.log_format, loaded.settings.run.log_level)
    return loaded


def _request(arguments: Namespace) -> DumpRequest:
    from pipeline.config.request import DumpRequest

    return DumpRequest(
        arguments.source,
        arguments.target,
        debug=arguments.debug,
        also=tuple(arguments.also),
        encrypt_to=tuple(arguments.encrypt_to),
    )


def _dump(arguments: Namespace) -> int:
    loaded = _settings(arguments)
    from pipeline.run import dump

    return dump.run_dump(_request(arguments), loaded)


def _plan(arguments: Namespace) -> int:
    loaded = _settings(arguments)
    from pipeline.run import commands

    return commands.run_plan(_request(arguments), loaded, arguments.json)


def _info(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_info(arguments.source, arguments.json)


def _verify(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_verify(arguments.source, arguments.against, full=arguments.full)


def _estimate(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_estimate(arguments.source, arguments.target, arguments.json)


def _translate(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_translate(arguments.source, arguments.vaddrs, arguments.json)


def _dmesg(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_dmesg(arguments.source)


def _trace(arguments: Namespace) -> int:
    from pipeline.run import commands

    if arguments.action == "record":
        return commands.run_trace_record(arguments.source, arguments.file)
    return commands.run_trace_replay(arguments)


def _receive(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_receive(arguments)


def _resume(arguments: Namespace) -> int:
    from pipeline.config.dump_arguments import given_reports
    from pipeline.run import commands

    return commands.run_resume(arguments.journal, given_reports(arguments))


def _keygen(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_keygen(arguments.file)


def _decrypt(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_decrypt(
        arguments.source, arguments.target, arguments.identity, overwrite=arguments.force
    )


def _demo(arguments: Namespace) -> int:
    from pipeline.run import commands

    return commands.run_demo(arguments.directory)


def _doctor(arguments: Namespace) -> int:
    # Not through `assemble`: it must work where the packages that other commands need are absent.
    from pipeline.obs.doctor import run_doctor

    with printing():
        return run_doctor(arguments.directory, sys.stdout)


_COMMANDS: Final[dict[str, Callable[[Namespace], int]]] = {
    "dump": _dump,
    "plan": _plan,
    "info": _info,
    "verify": _verify,
    "estimate": _estimate,
    "translate": _translate,
    "dmesg": _dmesg,
    "trace": _trace,
    "receive": _receive,
    "resume": _resume,
    "keygen": _keygen,
    "decrypt": _decrypt,
    "demo": _demo,
    "doctor": _doctor,
}

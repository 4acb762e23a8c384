"""Signals around the command itself: while it is being imported, and after it has ended."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipeline.errors import EXIT_DONE, EXIT_FAILED

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
INTERRUPTED = "dumpstream: error: interrupted\n"
STRIKE = """\
import os, sys

number, module = int(sys.argv.pop(1)), sys.argv.pop(1)

class Striking:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Striking())
from pipeline.__main__ import run

run()
"""
"""Signals itself at the import of a module, which is loaded all the same if it survives that."""


def struck(number: int, module: str, **more: object) -> subprocess.CompletedProcess[str]:
    """``dumpstream --help`` with signal `number` at the import of `module`."""
    words = [sys.executable, "-c", STRIKE, str(int(number)), module, "--help"]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        words, capture_output=True, text=True, check=False, **more
    )


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize(
    "module", ["pipeline.cli", "argparse", "pipeline.config.arguments", "pipeline.obs.plain"]
)
def test_signal_in_an_import(number: signal.Signals, module: str) -> None:
    """One line and code 1, as later: no traceback, no death by signal, no help."""
    done = struck(number, module)

    assert (done.returncode, done.stdout, done.stderr) == (EXIT_FAILED, "", INTERRUPTED)


@pytest.mark.parametrize("module", ["signal", "enum"])
def test_interrupt_in_the_first_import(module: str) -> None:
    """The same before there is a handler, when Ctrl-C is an exception."""
    done = struck(signal.SIGINT, module)

    assert (done.returncode, done.stdout, done.stderr) == (EXIT_FAILED, "", INTERRUPTED)


@pytest.mark.parametrize("number", ENDING)
def test_ignored_on_purpose(number: signal.Signals) -> None:
    """Under nohup, and in the background of a script, the imports go on as well."""
    done = struck(number, "argparse", preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))

    assert (done.returncode, done.stderr) == (EXIT_DONE, "")
    assert done.stdout.startswith("usage: dumpstream")


def test_interrupt_at_the_end() -> None:
    """Ctrl-C once more, while the first is being told of, shows no traceback either."""
    code = (
        "from pipeline import cli\n"
        "from pipeline.__main__ import run\n"
        "def main(): raise KeyboardInterrupt\n"
        "cli.main = main\n"
        "run()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (EXIT_FAILED, "", "")

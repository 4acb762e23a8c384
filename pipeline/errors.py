"""The error tree: facts are attributes, the message is built from them.

One line of text is all a user sees, so every error says what failed, where, what was seen and what
was wanted. `EXIT_CODES` is the only place that maps a class to a process exit code.
"""

from __future__ import annotations

from typing import Final


class DumpError(Exception):
    """Base of everything dumpstream raises on purpose."""


class FormatError(DumpError):
    """A structure in the image has a value it cannot have.

    Args:
        form: the format that was being read, such as ``elf`` or ``kdump``.
        file_off: byte in the file where the field starts, None when it is not from a file.
        field: the field's name as the format's own headers spell it.
        value: what was seen.
        wanted: what would have been right, in words.
    """

    def __init__(
        self, form: str, file_off: int | None, field: str, value: object, wanted: str
    ) -> None:
        self.form = form
        self.file_off = file_off
        self.field = field
        self.value = value
        self.wanted = wanted
        shown = hex(value) if isinstance(value, int) and abs(value) > 9 else repr(value)
        where = "" if file_off is None else f" at file offset {file_off:#x}"
        super().__init__(f"{form}: {field}{where} is {shown}, wanted {wanted}")


class TruncatedError(FormatError):
    """The file ends before a structure does."""

    def __init__(self, form: str, file_off: int, what: str, n_bytes: int, file_size: int) -> None:
        super().__init__(
            form, file_off, what, f"cut at {file_size} bytes", f"{n_bytes} bytes of it"
        )
        self.n_bytes = n_bytes
        self.file_size = file_size


class UnsupportedError(DumpError):
    """Recognised, but not something this version handles."""


class MissingInfoError(DumpError):
    """The image lacks a fact that the request needs, such as a VMCOREINFO key."""

    def __init__(self, what: str, needed_for: str) -> None:
        self.what = what
        self.needed_for = needed_for
        super().__init__(f"{what} is missing, needed for {needed_for}")


class MissingPageError(DumpError):
    """A page that a reader must have is not in the image."""

    def __init__(self, pfn: int, why: str, *, page_size: int) -> None:
        self.pfn = pfn
        self.why = why
        super().__init__(
            f"page at paddr {pfn * page_size:#x} (pfn {pfn:#x}) is not readable: {why}"
        )


class TranslationError(DumpError):
    """An address could not be translated.

    Args:
        address: the address that was asked for.
        level: the table's kernel name (``pgd``, ``p4d``, ``pud``, ``pmd``, ``pte``).
        index: entry index inside that table.
        entry: raw entry, None when the table itself could not be read.
        entry_paddr: where the entry lies.
        problem: what is wrong, in words.
    """

    def __init__(
        self,
        address: int,
        level: str,
        index: int,
        entry: int | None,
        entry_paddr: int,
        problem: str,
    ) -> None:
        self.address = address
        self.level = level
        self.index = index
        self.entry = entry
        self.entry_paddr = entry_paddr
        self.problem = problem
        seen = "unreadable" if entry is None else f"{entry:#x}"
        where = f"vaddr {address:#x}, entry {seen} at paddr {entry_paddr:#x}"
        super().__init__(f"{level}[{index}] {problem}: {where}")


class NotPresentError(TranslationError):
    """The walk met an entry whose present bit is clear."""


class NonCanonicalError(TranslationError):
    """The address has bits that the paging form cannot hold; no table was looked into."""

    def __init__(self, address: int, n_bits: int) -> None:
        super().__init__(address, "", 0, None, 0, f"is not canonical for {n_bits} bits")
        self.args = (f"vaddr {address:#x} {self.problem}",)


class SinkError(DumpError):
    """The target could not be written."""


class RestartableSinkError(SinkError):
    """The target lost what it had been sent and cannot go on; a run from the start may succeed."""


class ConfigError(DumpError):
    """A setting is unknown, of the wrong type or out of bounds."""

    def __init__(self, file: str, key: str, problem: str) -> None:
        self.file = file
        self.key = key
        self.problem = problem
        super().__init__(f"{file}: {key}: {problem}")


class ClosedOutputError(DumpError):
    """The reader of a report went away, as ``head`` does: it has what it wanted."""


class UsageError(DumpError):
    """The command line asks for something that makes no sense."""


class TornStreamError(DumpError):
    """A channel ended without `EndOfDump`: somebody upstream stopped early."""


class WorkerDiedError(DumpError):
    """A worker process went away without answering."""


class PageCountError(DumpError):
    """Pages in differ from kept + excluded + missing: a bug or a changing image."""


class StageError(DumpError):
    """A stage failed; `cause` is its own error."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        self.stage = stage
        self.cause = cause
        text = full_text(cause) or type(cause).__name__
        if not isinstance(cause, (DumpError, OSError)):
            text = f"{type(cause).__name__}: {text}"
        super().__init__(f"{stage}: {text}")


class InterruptedRunError(DumpError):
    """SIGINT, SIGTERM or SIGHUP ended the run."""


class IncompleteDumpError(DumpError):
    """A dump that lacks something was left; it is usable as far as it goes, and says what it is.

    Args:
        reason: what ended the run, or what the dump lacks.
        where: the dump.
    """

    def __init__(self, reason: str, where: str) -> None:
        self.reason = reason
        self.where = where
        super().__init__(f"{reason}; the dump is usable as far as it goes: {where}")


class OnlyLogError(IncompleteDumpError):
    """No target took the dump, and one has the kernel log.

    Args:
        log: where that is.
        where: an incomplete dump that was left as well, empty if none was.
    """

    def __init__(self, log: str, where: str) -> None:
        super().__init__(f"no target took the dump, only the kernel log is there: {log}", where)
        if not where:
            self.args = (self.reason,)


EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCOMPLETE: Final = 3
EXIT_CLOSED_OUTPUT: Final = 141
"""What a shell shows of a command that died of SIGPIPE: 128 and its number."""


def first_of(error: BaseException) -> BaseException:
    """The one error to report of a group, however deep: the first that is no group itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def full_text(error: BaseException) -> str:
    """The message of `error`, its notes (where it happened, what else is known) in parentheses."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    notes = "; ".join(getattr(error, "__notes__", ()))
    return f"{text} ({notes})" if notes else text


def exit_code(error: BaseException) -> int:
    """Exit code for `error`, by its class; a stage's failure counts as what caused it."""
    cause: BaseException = error
    while isinstance(cause, StageError):
        cause = cause.cause
    if isinstance(cause, IncompleteDumpError):
        return EXIT_INCOMPLETE
    if isinstance(cause, ClosedOutputError):
        return EXIT_CLOSED_OUTPUT
    return EXIT_USAGE if isinstance(cause, (ConfigError, UsageError)) else EXIT_FAILED

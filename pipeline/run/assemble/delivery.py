"""Where the dump goes: the sink of one target, of several at once, of the first that takes it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from msgspec import structs

from pipeline.config.request import STDOUT
from pipeline.errors import ConfigError, DumpError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pipeline.config.layers import LoadedSettings
    from pipeline.config.request import DumpRequest
    from pipeline.config.resolved import Resolved
    from pipeline.config.settings import Settings
    from pipeline.config.targets import NetSettings, TargetEntry
    from pipeline.flow.items import Receipt
    from pipeline.flow.protocols import Sink
    from stages.sink.journal import Journal
    from stages.sink.manifest import Form
    from stages.sink.partial_file import PartialFile


def check_request(request: DumpRequest, loaded: LoadedSettings) -> None:
    """Refuse what can be known to go wrong before the image is looked at.

    Raises:
        UsageError: a target is a URL that nobody serves, or named twice; a key is none.
        ConfigError: one of ``[[targets]]`` is such a URL; statistics can't go where they should.
        UnsupportedError: encryption was not installed.
    """
    _check_targets(request, loaded)
    _check_stats(request, loaded)
    if request.encrypt_to:
        from stages.crypt.dump_key import make_dump_key

        try:
            make_dump_key(request.encrypt_to)
        except UnsupportedError:
            raise
        except DumpError as error:
            raise UsageError(str(error)) from error


def check_standard_output(request: DumpRequest) -> None:
    """Refuse a dump for a terminal, before the image is looked at.

    Raises:
        UsageError: standard output is a target, and a terminal.
    """
    if STDOUT in request.targets:
        from stages.sink.flattened import refuse_terminal

        refuse_terminal(sys.stdout.fileno())


def _check_stats(request: DumpRequest, loaded: LoadedSettings) -> None:
    settings = loaded.settings
    if settings.run.stats is None:
        return
    from pipeline.obs.stats import check_stats_path

    in_use = [request.source, *request.targets, *(each.url for each in settings.targets)]
    if request.journal is not None:
        in_use.append(request.journal)
    check_stats_path(settings.run.stats, in_use)


def check_target(target: str) -> None:
    """Raises:
    UsageError: `target` is a URL that nobody serves.
    """
    if "://" in target:
        from stages.sink.targets import require_scheme

        require_scheme(target)


def _check_targets(request: DumpRequest, loaded: LoadedSettings) -> None:
    entries = loaded.settings.targets
    urls = [url for url in (*request.targets, *(each.url for each in entries)) if "://" in url]
    if urls:
        from stages.sink.targets import require_scheme

        for url in urls:
            try:
                require_scheme(url)
            except UsageError as error:
                if url in request.targets:
                    raise
                raise ConfigError(loaded.origin("targets"), "targets.url", str(error)) from error
    if request.also:
        places = [url if "://" in url else os.path.realpath(url) for url in request.targets]
        for target, place in zip(request.targets, places, strict=True):
            if places.count(place) > 1:
                raise UsageError(f"{target}: is named twice as a target")


def make_sink(
    request: DumpRequest,
    resolved: Resolved,
    settings: Settings,
    journal: Journal | None = None,
    *,
    only_log: bool = False,
) -> Sink[Any]:
    """The sink for the request's target, or for all of them at once.

    Args:
        request: what goes where.
        resolved: how files are written.
        settings: of network targets.
        journal: to be written, and gone on with if it has an upload.
        only_log: what comes is the kernel log, not a dump.

    Raises:
        UsageError: a target is no name of a file, is the source, or is a URL that nobody serves.
    """
    form: Form = "log" if only_log else resolved.dump.format
    if request.encrypt_to:
        form = "encrypted"
    if not request.also:
        return _one_sink(request, request.target, resolved, settings, journal, form)
    from stages.sink.fallback import show_target
    from stages.sink.fanout import FanOutSink

    sinks = [
        (show_target(target), _one_sink(request, target, resolved, settings, None, form))
        for target in request.targets
    ]
    return FanOutSink(
        sinks, buffer_bytes=resolved.sink.channel_bytes, open_s=_most_opening_s(settings.net)
    )


def _most_opening_s(net: NetSettings) -> float:
    """Longer than any target takes that keeps to the settings: more is a hang."""
    return (
        net.start_jitter_s + net.retry_deadline_s + net.connect_timeout_s + 2 * net.stall_timeout_s
    )


def final_receipt(sink: Sink[Any], receipt: Receipt) -> Receipt:
    """`receipt`, without those of several targets that failed in the commit."""
    told = getattr(sink, "receipt", None)
    return receipt if told is None else told()


def _one_sink(
    request: DumpRequest,
    target: str,
    resolved: Resolved,
    settings: Settings,
    journal: Journal | None,
    form: Form,
) -> Sink[Any]:
    if target == STDOUT:
        from stages.sink.flattened import FlattenedSink, StdoutStream

        return FlattenedSink(StdoutStream())
    if "://" in target:
        from stages.sink.targets import make_remote_sink

        return make_remote_sink(target, _fitted(settings, resolved), journal, form=form)
    from stages.sink.partial_file import PartialFile

    # Not as resolved, which is about the first target, and that may be a stream.
    file = PartialFile(target, overwrite=settings.dump.overwrite, fsync=settings.sink.fsync)
    if file.would_replace(request.source):
        raise UsageError(f"{target}: would replace the source, {request.source}")
    if settings.dump.flatten:
        from stages.sink.flattened import FileStream, FlattenedSink

        return FlattenedSink(FileStream(file))
    return _file_sink(file, resolved)


def _fitted(settings: Settings, resolved: Resolved) -> Settings:
    """`settings` with the network sections that fit the memory budget."""
    return structs.replace(
        settings,
        s3=resolved.s3,
        azure=resolved.azure,
        ssh=resolved.ssh,
        http=resolved.http,
        tcp=resolved.tcp,
    )


def _file_sink(file: PartialFile, resolved: Resolved) -> Sink[Any]:
    from stages.sink.file import FileSink, PwriteWriter

    if resolved.sink.write_mode == "aiofiles":
        from stages.sink.aio import AiofilesWriter

        return FileSink(file, AiofilesWriter())
    return FileSink(file, PwriteWriter())


async def deliver(
    target: str,
    others: Sequence[TargetEntry],
    settings: Settings,
    attempt: Callable[[TargetEntry], Awaitable[Receipt]],
) -> Receipt:
    """Attempt `target` and then `others` until one has the dump, each within its deadline."""
    from pipeline.config.targets import TargetEntry
    from pipeline.obs.log import log_event
    from stages.sink.fallback import TargetPlan, dump_to_first, show_target

    plan = TargetPlan([TargetEntry(target), *others], restart_s=settings.net.retry_deadline_s)
    done = await dump_to_first(plan, attempt)
    if done.failures:
        failed = [f"{failure.target}: {failure.reason}" for failure in done.failures]
        log_event("target_used", "warning", target=show_target(done.entry.url), failed=failed)
    return done.receipt

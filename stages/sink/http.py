"""``http://`` and ``https://``: a dump on a web server, in the best form that the server takes.

Servers that write parts of files in place get a directly readable dump in pieces, each tried again
by itself. All others get the flattened stream in one PUT.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from msgspec import structs

from pipeline.errors import SinkError, UsageError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, HeadOrder, Outline, Receipt
from pipeline.obs.log import log_event
from stages.sink.http_auth import authorization
from stages.sink.http_client import StreamingClient
from stages.sink.http_files import HttpFiles
from stages.sink.http_probe import Abilities, Ranges, probe
from stages.sink.http_ranges import HttpRangeStore
from stages.sink.http_stream import HttpStreamSink
from stages.sink.http_url import PARTIAL, HttpTarget, parse_http_url
from stages.sink.manifest import DumpFacts, Form
from stages.sink.parts_sink import PartsOptions, PartsSink
from stages.sink.read_back import Extent
from stages.sink.retry import Failure, RetryPolicy, retry
from stages.sink.throttle import TokenBucket, start_jitter

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.config.targets import HttpSettings, NetSettings
    from stages.sink.journal import Journal

_OPEN_TRIES_S: Final = 30.0
"""How long the first requests may be tried for: a wrong address should not take minutes."""


def make_sink(
    url: str, settings: Settings, journal: Journal | None = None, *, form: Form = "kdump"
) -> HttpSink:
    """The sink for a web server.

    Args:
        url: of the dump, whose directory is there.
        settings: all; ``net``, ``http``, ``dump.overwrite`` and ``dump.flatten`` count.
        journal: to be written, and gone on with if it has an upload.
        form: what the chunks make up.

    Raises:
        UsageError: the URL names no file.
    """
    http = settings.http
    if settings.dump.flatten:
        if http.ranges == "always":
            raise UsageError("--flatten and http.ranges=always exclude each other")
        http = structs.replace(http, ranges="never")
    return HttpSink(
        parse_http_url(url),
        http,
        settings.net,
        overwrite=settings.dump.overwrite,
        journal=journal,
        form=form,
    )


class HttpSink:
    """Sink[Chunk] that decides in `open` which form the dump takes; `head_order` is known then."""

    name = "sink"

    def __init__(
        self,
        target: HttpTarget,
        http: HttpSettings,
        net: NetSettings,
        *,
        overwrite: bool,
        journal: Journal | None = None,
        form: Form = "kdump",
    ) -> None:
        self._target = target
        self._form: Form = form
        self._http = http
        self._net = net
        self._overwrite = overwrite
        self._journal = journal
        self._files: HttpFiles | None = None
        self._inner: PartsSink | HttpStreamSink | None = None
        self._facts = DumpFacts()

    @property
    def head_order(self) -> HeadOrder:
        """As the form wants it; only after `open`."""
        return self._chosen.head_order

    @property
    def _chosen(self) -> PartsSink | HttpStreamSink:
        if self._inner is None:
            raise SinkError(f"{self._target.show()}: is not open")
        return self._inner

    def describe(self, facts: DumpFacts) -> None:
        """Take what the manifest says of the run; the last call before `commit` counts."""
        self._facts = facts
        if self._inner is not None:
            self._inner.describe(facts)

    async def open(self) -> None:
        await start_jitter(self._net.start_jitter_s)
        policy = RetryPolicy.of(self._net)
        policy = replace(policy, deadline_s=min(policy.deadline_s, _OPEN_TRIES_S))
        try:
            self._files = files = self._reach()
            abilities = await retry(lambda: self._look(files), policy, on_failure=_note)
            self._inner = self._choose(files, abilities)
            self._inner.describe(self._facts)
            await self._inner.open()
        except BaseException:
            await self.abort()
            raise

    def _reach(self) -> HttpFiles:
        credentials = authorization(
            self._target,
            os.environ,
            token_file=self._http.token_file,
            netrc_file=self._http.netrc,
        )
        if credentials and not self._target.is_secure:
            log_event("credentials_in_clear", "warning", target=self._target.show())
        client = StreamingClient(self._target.show(), self._net, TokenBucket(self._net.rate_limit))
        return HttpFiles(self._target, client, credentials)

    async def _look(self, files: HttpFiles) -> Abilities:
        """Refuse what is there, then find out what the server can do."""
        if self._journal is not None and self._journal.records:
            return Abilities(Ranges.IN_PLACE, moves=True, reads=True)  # of the upload to go on with
        for suffix in ("", PARTIAL):
            if not self._overwrite and await files.exists(suffix):
                raise SinkError(f"{self._target.show(suffix)}: exists; -f overwrites it")
        return await probe(files)

    def _choose(self, files: HttpFiles, abilities: Abilities) -> PartsSink | HttpStreamSink:
        in_parts = _in_parts(self._http.ranges, abilities, self._target)
        log_event(
            "upload_form_chosen",
            form=self._form if in_parts else "flattened",
            resumes=in_parts,
            why=abilities.ranges.value,
        )
        if not in_parts:
            return HttpStreamSink(
                files,
                self._net,
                moves=abilities.moves,
                reads=abilities.reads,
                overwrite=self._overwrite,
                verify=self._extent(),
                holds=self._form,
            )
        store = HttpRangeStore(files, moves=abilities.moves, verify=self._extent())
        options = PartsOptions(
            name=self._target.name,
            part_bytes=self._http.piece_bytes,
            buffer_bytes=self._http.buffer_bytes,
            overwrite=self._overwrite,
            form=self._form,
        )
        return PartsSink(
            store, options, structs.replace(self._net, start_jitter_s=0), self._journal
        )

    def _extent(self) -> Extent:
        if self._http.verify == "auto":
            return "samples" if self._target.is_secure else "all"
        return self._http.verify

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        return await self._chosen.run(inbox)

    async def commit(self) -> None:
        await self._chosen.commit()

    async def abort(self) -> str | None:
        if self._inner is not None:
            return await self._inner.abort()
        if self._files is not None:
            await self._files.close()
        return None


def _in_parts(wanted: str, abilities: Abilities, target: HttpTarget) -> bool:
    """True for a readable dump in pieces.

    Raises:
        SinkError: pieces are demanded, and the server cannot.
    """
    if wanted == "always" and abilities.ranges is Ranges.NONE:
        raise SinkError(f"{target.show()}: http.ranges=always, but {abilities.ranges.value}")
    if wanted == "auto":
        return abilities.ranges is Ranges.IN_PLACE
    return wanted == "always"


def _note(failure: Failure) -> None:
    log_event(
        "request_failed",
        "warning",
        why=str(failure.error),
        failures=failure.n_failures,
        retry_in_s=round(failure.delay_s, 2),
    )

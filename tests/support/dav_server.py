"""A web server that keeps files, as able or as strange as a test wants it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import anyio

from tests.support.web_server import HangUpError, Request, Response, web_server

_SPAN = re.compile(r"bytes[ =](\d+)-(\d+)(?:/\*)?")


@dataclass
class DavServer:
    """Files by path, and how requests about them are answered.

    Attributes:
        ranges: of PUT: written in place, by copying the file, refused, or taken for a whole file.
        methods: others get 405.
        token: what has to come as a bearer token.
        before: called with each request; what it returns is the answer, None goes on.
        after: called with each request that was done; may hang up.
    """

    ranges: Literal["in place", "copied", "refused", "ignored"] = "in place"
    methods: set[str] = field(default_factory=lambda: {"HEAD", "GET", "PUT", "MOVE", "DELETE"})
    token: str | None = None
    before: Callable[[Request], Response | None] = lambda _: None
    after: Callable[[Request], object] = lambda _: None
    files: dict[str, bytearray] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)

    async def handle(self, request: Request) -> Response:
        self.seen.append(request)
        early = self.before(request)
        if early is not None:
            return early
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return Response(401)
        if request.method not in self.methods:
            return Response(405)
        answer = await self._do(request)
        self.after(request)
        return answer

    async def _do(self, request: Request) -> Response:
        match request.method:
            case "PUT":
                return await self._put(request)
            case "MOVE":
                return self._move(request)
            case "DELETE":
                return Response(204 if self.files.pop(request.path, None) is not None else 404)
        if request.path not in self.files:
            return Response(404)
        return self._get(request)

    def _get(self, request: Request) -> Response:
        data = bytes(self.files[request.path])
        span = _SPAN.fullmatch(request.headers.get("range", ""))
        if span is None:
            return Response(200, data)
        first, last = (int(text) for text in span.groups())
        return Response(206, data[first : last + 1]) if first < len(data) else Response(416)

    async def _put(self, request: Request) -> Response:
        if "content-range" not in request.headers or self.ranges == "ignored":
            is_new = request.path not in self.files
            self.files[request.path] = bytearray(request.body)
            return Response(201 if is_new else 204)
        span = _SPAN.fullmatch(request.headers["content-range"])
        if self.ranges == "refused" or span is None:
            return Response(501)
        file = self.files[request.path]
        if self.ranges == "copied":
            await anyio.sleep(len(file) / (1 << 30))
        first = int(span[1])
        file.extend(bytes(max(first - len(file), 0)))
        file[first : first + len(request.body)] = request.body
        return Response(204)

    def _move(self, request: Request) -> Response:
        new = "/" + request.headers["destination"].split("/", 3)[3]
        if new in self.files and request.headers.get("overwrite") == "F":
            return Response(412)
        if request.path not in self.files:
            return Response(404)
        self.files[new] = self.files.pop(request.path)
        return Response(201)

    def lose(self, method: str, path: str, *, done: bool) -> None:
        """Hang up on the first such request, before or after it was done."""
        left = [True]

        def hang_up(request: Request) -> Response | None:
            if left[0] and request.method == method and request.path == path:
                left[0] = False
                raise HangUpError
            return None

        if done:
            self.after = hang_up
        else:
            self.before = hang_up

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve as long as the block lasts; gives the server's URL."""
        async with web_server(self.handle) as url:
            yield url

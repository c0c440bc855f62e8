"""Routes for httpx2, and so for the SDKs that use it: `pip install keyhatch[httpx]`.

    client = openai.OpenAI(
        base_url="https://api.openai.com/v1",
        api_key="the agent adds it",
        http_client=httpx2.Client(transport=RouteTransport("openai")),
    )

What the agent itself refuses is raised as in the rest of this library, such as `keyhatch.Denied`; an SDK has that as
the cause of an error of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpcore2
import httpx2

from . import route as _route
from ._errors import TimedOut, Unreachable, from_answer
from ._route import ROUTE, Answer, Route
from ._socket import Address

# How often a connection is tried again, with growing pauses: an agent that restarts comes back.
_RETRIES = 4


class RouteTransport(httpx2.BaseTransport):
    """Sends the requests of a client by a route; of their URLs, the path and the query count."""

    def __init__(self, route: Route | str) -> None:
        self._route = _route(route) if isinstance(route, str) else route

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:  # noqa: D102
        framed = "content-length" in request.headers or "transfer-encoding" in request.headers
        with _told(request):
            answer = self._route.request(
                request.method,
                request.url.raw_path.decode("ascii"),
                headers=request.headers.multi_items(),
                body=request.stream if framed else None,  # type: ignore[arg-type]
                timeout=request.extensions.get("timeout", {}).get("read"),
            )
        headers = answer.headers.items()
        return httpx2.Response(answer.status, headers=headers, stream=_Stream(answer, request))

    def close(self) -> None:  # noqa: D102
        self._route.close()


class AsyncRouteTransport(httpx2.AsyncBaseTransport):
    """`RouteTransport` for an `AsyncClient`."""

    def __init__(self, route: Route | str) -> None:
        self._route = _route(route) if isinstance(route, str) else route
        address = self._route.address
        self._pool = httpcore2.AsyncConnectionPool(
            uds=address.path, retries=_RETRIES, network_backend=_Checked(address)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:  # noqa: D102
        target = self._route.target(request.url.raw_path.decode("ascii")).encode()
        asked = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=b"http", host=b"keyhatch", port=None, target=target),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _told(request):
            answer = await self._pool.handle_async_request(asked)
            stream: Any = answer.stream
            if ROUTE.lower().encode() not in dict(answer.headers):
                body = b"".join([piece async for piece in stream])
                await stream.aclose()
                after = dict(answer.headers).get(b"retry-after", b"")
                raise from_answer(answer.status, float(after) if after.isdigit() else None, body)
        return httpx2.Response(answer.status, headers=answer.headers, stream=_AsyncStream(stream, request))

    async def aclose(self) -> None:  # noqa: D102
        await self._pool.aclose()


class _Checked(httpcore2.AnyIOBackend):
    """Connects, and looks at who listens before anything is sent."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore2.AsyncNetworkStream:
        folder = self._address.folder()
        stream = await super().connect_unix_socket(path, timeout, socket_options)
        try:
            self._address.check(folder, stream.get_extra_info("socket"))
        except BaseException:
            await stream.aclose()
            raise
        return stream


class _Stream(httpx2.SyncByteStream):
    def __init__(self, answer: Answer, request: httpx2.Request) -> None:
        self._answer, self._request = answer, request

    def __iter__(self) -> Iterator[bytes]:
        with _told(self._request):
            yield from self._answer

    def close(self) -> None:
        self._answer.close()


class _AsyncStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _told(self._request):
            async for piece in self._stream:
                yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextlib.contextmanager
def _told(request: httpx2.Request) -> Iterator[None]:
    """Failures on the way to the agent, as a client of httpx2 expects them."""
    try:
        yield
    except (TimedOut, httpcore2.TimeoutException) as error:
        raise httpx2.ReadTimeout(str(error), request=request) from error
    except (Unreachable, httpcore2.ConnectError) as error:
        raise httpx2.ConnectError(str(error), request=request) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise httpx2.ReadError(str(error), request=request) from error

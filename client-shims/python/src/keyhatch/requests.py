"""Routes for requests: `pip install keyhatch[requests]`.

    session = requests.Session()
    session.mount("https://api.github.com/", RouteAdapter("github"))
    session.get("https://api.github.com/user")

What the agent itself refuses is raised as in the rest of this library, such as `keyhatch.Denied`.
"""

from __future__ import annotations

from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from . import route as _route
from ._errors import TimedOut, Unreachable
from ._route import Route


class RouteAdapter(HTTPAdapter):
    """Sends the requests of a session by a route; of their URLs, the path and the query count."""

    def __init__(self, route: Route | str) -> None:
        super().__init__()
        self._route = _route(route) if isinstance(route, str) else route

    def send(  # noqa: D102
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        read = timeout[1] if isinstance(timeout, tuple) else timeout
        try:
            answer = self._route.request(
                request.method or "GET",
                request.path_url,
                headers=dict(request.headers),
                body=request.body,
                timeout=read,
            )
        except TimedOut as error:
            raise requests.ReadTimeout(error, request=request) from error
        except Unreachable as error:
            raise requests.ConnectionError(error, request=request) from error
        raw = urllib3.HTTPResponse(
            body=answer.detach(),
            headers=urllib3.HTTPHeaderDict(answer.headers.items()),
            status=answer.status,
            reason=answer.reason,
            preload_content=False,
            request_method=request.method,
        )
        return self.build_response(request, raw)

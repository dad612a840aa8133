"""What every page's function begins with: whose session it is, and what went wrong in words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import gradio as gr
import httpx2 as httpx
from markupsafe import escape

from spark_ray.datasets.display import visible
from spark_ray.serving.ui.client import Api, ApiProblem
from spark_ray.serving.ui.sessions import COOKIE, Session, Sessions


class Visitors:
    """Sessions, and the server that their keys are for."""

    def __init__(self, sessions: Sessions, client: httpx.AsyncClient) -> None:
        self.sessions, self._client = sessions, client

    def api(self, key: str) -> Api:
        return Api(self._client, key)

    def session(self, request: gr.Request) -> Session:
        """
        Raises:
            gr.Error: it has ended.
        """
        assert request.request is not None, "every event comes with its HTTP request"
        session = self.sessions.get(request.request.cookies.get(COOKIE))
        if session is None:
            raise gr.Error("Your session has ended. Reload the page to log in again.", title="")
        return session

    @asynccontextmanager
    async def server(self, request: gr.Request) -> AsyncIterator[Api]:
        """The server with this visitor's key; its refusals show on the page.

        Raises:
            gr.Error: the session has ended, or the server said no.
        """
        session = self.session(request)
        try:
            yield self.api(session.key)
        except ApiProblem as problem:
            # Gradio shows it as HTML, and a message may quote what came from outside.
            message = str(escape(visible(str(problem))))
            raise gr.Error(message, title="", print_exception=False) from problem

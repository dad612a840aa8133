"""The front end's ASGI application: who gets in, and what surrounds Gradio.

Nothing of Gradio answers to a visitor without a session, uploads and queues included.
"""

import os
import re
from urllib.parse import parse_qs

import httpx2 as httpx
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spark_ray.serving.envelope import Envelope
from spark_ray.serving.settings import RequestLimits
from spark_ray.serving.ui.client import ApiProblem
from spark_ray.serving.ui.render import render, style
from spark_ray.serving.ui.sessions import COOKIE, Sessions
from spark_ray.serving.ui.settings import UiSettings
from spark_ray.serving.ui.visitors import Visitors

# What the user set goes before. Gradio reports its usage over the network unless told not to.
_DEFAULTS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

# Pages load nothing from elsewhere. Gradio compiles its templates in the browser: 'unsafe-eval'.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
]
_ANY_PATH = re.compile(".*", re.DOTALL)  # Gradio's own uploads are on several
_OPEN = frozenset(("/login", "/logout"))
_MOST_FORM_BYTES = 16 << 10
_MOST_PAGE_BYTES = 4 << 20


def create_ui(settings: UiSettings) -> ASGIApp:
    """The front end over the server at `settings.api_url`."""
    client = httpx.AsyncClient(base_url=settings.api_url, timeout=settings.request_timeout_s)
    visitors = Visitors(Sessions(settings.session_lifetime_s, settings.max_sessions), client)
    return guarded(pages_app(settings, visitors), settings, visitors.sessions)


def pages_app(settings: UiSettings, visitors: Visitors) -> FastAPI:
    """Login and Gradio's pages, open to whoever can reach them."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import gradio as gr

    from spark_ray.serving.ui.pages import THEME, build_pages

    app = FastAPI(title="SparkRay front end", docs_url=None, redoc_url=None, openapi_url=None)
    _add_login(app, settings, visitors)

    def visitor(request: Request) -> str | None:
        session = visitors.sessions.get(request.cookies.get(COOKIE))
        return None if session is None else session.name

    return gr.mount_gradio_app(
        app,
        build_pages(visitors),
        path="/",
        auth_dependency=visitor,
        max_file_size=settings.max_upload_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        theme=THEME,
        css=style(),
    )


def guarded(app: ASGIApp, settings: UiSettings, sessions: Sessions) -> ASGIApp:
    """The same, for visitors who have logged in, with bounds on what they send."""
    limits = RequestLimits.model_validate(
        {"max_upload_bytes": settings.max_upload_bytes, "max_body_bytes": _MOST_PAGE_BYTES}
    )
    return Envelope(_Guard(app, sessions), limits, _ANY_PATH)


def _add_login(app: FastAPI, settings: UiSettings, visitors: Visitors) -> None:
    @app.get("/login", response_class=HTMLResponse)
    async def login() -> HTMLResponse:
        return _login_page()

    @app.post("/login")
    async def log_in(request: Request) -> Response:
        key = parse_qs(await _form(request)).get("key", [""])[0].strip()
        try:
            about = await visitors.api(key).get("/v1/me") if key.isascii() and key else None
        except ApiProblem as problem:
            if problem.status != 401:
                return _login_page(f"{problem}", problem.status or 502)
            about = None
        if about is None:
            return _login_page("This is no valid key, or it was revoked or is out of date.", 401)
        # The old session, if there is one, is another visitor's now.
        visitors.sessions.end(request.cookies.get(COOKIE))
        token = visitors.sessions.begin(key, about["name"], frozenset(about["scopes"]))
        home = request.scope.get("root_path", "") + "/"
        response = RedirectResponse(home, 303)
        response.set_cookie(
            COOKIE, token, path=home.rstrip("/") or "/", httponly=True, samesite="strict",
            secure=settings.secure_cookies,
        )  # fmt: skip
        return response

    @app.post("/logout")
    async def log_out(request: Request) -> Response:
        visitors.sessions.end(request.cookies.get(COOKIE))
        response = RedirectResponse(request.scope.get("root_path", "") + "/login", 303)
        response.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
        return response


async def _form(request: Request) -> str:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_FORM_BYTES:
            return ""
    return data.decode("ascii", "replace")


def _login_page(problem: str = "", status: int = 200) -> HTMLResponse:
    return HTMLResponse(
        render("login", problem=problem), status, headers={"Cache-Control": "no-store"}
    )


class _Guard:
    """Keeps visitors without a session out, and adds headers to every answer.

    Gradio asks `auth_dependency` on most of its routes; here it is all of them.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return  # an unanswered websocket is refused; the pages use none

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        root = scope.get("root_path", "")
        page = scope["path"].removeprefix(root)
        token = Request(scope).cookies.get(COOKIE)
        if page not in _OPEN and self._sessions.get(token) is None:
            await _sent_away(page, root)(scope, receive, send_guarded)
        elif page == "":
            await RedirectResponse(root + "/", 307)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)


def _sent_away(page: str, root: str) -> Response:
    """People are shown where to log in; programs are told."""
    if page in ("", "/"):
        return RedirectResponse(root + "/login", 303)
    message = "you are not logged in, or your session has ended; reload the page"
    return JSONResponse({"error": message, "detail": message}, 401)

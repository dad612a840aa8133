"""Parts of the front end that need no browser: sessions, HTML, and what is made of answers."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2 as httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.testclient import TestClient

from spark_ray.core.errors import ConfigError
from spark_ray.serving.ui import jobs_tab
from spark_ray.serving.ui import sessions as sessions_module
from spark_ray.serving.ui.jobs_tab import build_settings
from spark_ray.serving.ui.models_tab import metric_rows, without_front_matter
from spark_ray.serving.ui.pages import build_pages
from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.server import _add_login, guarded, pages_app
from spark_ray.serving.ui.sessions import COOKIE, Sessions
from spark_ray.serving.ui.settings import UiSettings
from spark_ray.serving.ui.try_tab import _play
from spark_ray.serving.ui.visitors import Visitors

HOSTILE = "<img src=x onerror=alert(1)>\"'\u202e&"


def test_a_session_ends_when_it_is_idle_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(sessions_module.time, "monotonic", lambda: now[0])
    sessions = Sessions(lifetime_s=60.0, most=10)
    token = sessions.begin("sk-1", "me", frozenset({"infer"}))
    assert len(token) >= 40
    for _ in range(3):
        now[0] += 50
        session = sessions.get(token)
        assert session is not None, "in use"
        assert (session.key, session.may("infer"), session.may("jobs")) == ("sk-1", True, False)
    now[0] += 61
    assert sessions.get(token) is None
    again = sessions.begin("sk-1", "me", frozenset())
    sessions.end(again)
    assert sessions.get(again) is None
    for nobody in (None, "", "made-up"):
        assert sessions.get(nobody) is None
        sessions.end(nobody)


def test_the_session_that_was_idle_longest_makes_room() -> None:
    sessions = Sessions(lifetime_s=60.0, most=2)
    first, second = (sessions.begin(f"sk-{n}", "me", frozenset()) for n in (1, 2))
    assert sessions.get(first) is not None
    third = sessions.begin("sk-3", "me", frozenset())
    assert sessions.get(second) is None
    assert sessions.get(first) is not None
    assert sessions.get(third) is not None


def clip(text: str) -> dict[str, Any]:
    return {
        "id": text, "split": "train", "label": text, "source_path": text, "duration_s": 2.0,
        "frames": 1, "has_audio": True, "caption": text, "transcript": text, "thumbnails": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("login", {"problem": HOSTILE}),
        ("player", {"path": HOSTILE, "kind": "video"}),
        ("clips", {"page": {"clips": [clip(HOSTILE)]}}),
        ("datasets", {"datasets": [{"name": HOSTILE, "problem": HOSTILE}]}),
        ("log", {"text": HOSTILE}),
        ("texts", {"answer": None, "written": {"caption": HOSTILE, "transcript": HOSTILE}}),
        (
            "jobs",
            {
                "jobs": [
                    {"id": HOSTILE, "name": HOSTILE, "state": HOSTILE, "done": None, "total": None,
                     "result": None, "created": 0.0}
                ]
            },
        ),
    ],
)  # fmt: skip
def test_what_comes_from_outside_is_text(template: str, values: dict[str, Any]) -> None:
    html = render(template, **values)
    assert "<img src=x" not in html
    assert "onerror=alert(1)>" not in html
    assert "onerror" in html, "it is shown for what it is"


def test_no_text_turns_the_direction_of_writing() -> None:
    assert "\\u202e" in render("log", text=HOSTILE)
    assert "\u202e" not in render("log", text=HOSTILE)


def test_nothing_answers_to_a_visitor_without_a_session() -> None:
    """Whatever routes Gradio has, and its next version adds."""
    settings = UiSettings.from_values()
    visitors = Visitors(Sessions(60.0, 10), httpx.AsyncClient(base_url=settings.api_url))
    app = pages_app(settings, visitors)
    visitor = TestClient(guarded(app, settings, visitors.sessions), follow_redirects=False)
    (pages,) = (route.app for route in app.routes if isinstance(route, Mount))
    routes = {
        (method.upper(), re.sub(r"{[^}]*}", "x", path))
        for path, methods in pages.openapi()["paths"].items()  # type: ignore[attr-defined]
        for method in methods
    }
    assert {("POST", "/gradio_api/upload"), ("GET", "/config")} <= routes
    for method, path in routes:
        if path not in ("/", "/login", "/logout"):
            answer = visitor.request(method, path)
            assert answer.status_code == 401, (method, path)
    assert visitor.get("/").headers["location"] == "/login"
    assert visitor.get("/login").status_code == 200

    cookie = {COOKIE: visitors.sessions.begin("sk", "me", frozenset())}
    assert visitor.get("/config", cookies=cookie).status_code == 200


@pytest.mark.parametrize(
    ("head", "tag"),
    [
        (b"\x89PNG\r\n\x1a\n", "<img"),
        (b"fLaC", "<audio"),
        (b"\0\0\0 ftypisom", "<video"),
        (b"text", None),
    ],
)
def test_what_is_dropped_is_shown_as_what_it_is(
    tmp_path: Path, head: bytes, tag: str | None
) -> None:
    (tmp_path / "film.mp4").write_bytes(head + bytes(100))
    shown = _play(str(tmp_path / "film.mp4"))
    assert shown.count('src="gradio_api/file=') == (tag is not None)
    assert tag is None or tag in shown


@pytest.mark.parametrize(
    ("status", "said"), [(429, "6 requests a minute"), (503, "no room"), (401, "no valid key")]
)
def test_who_can_not_log_in_is_told_why(status: int, said: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        message = {429: "this key may send 6 requests a minute", 503: "no room"}.get(status, "no")
        return httpx.Response(status, json={"error": {"message": message}})

    client = httpx.AsyncClient(base_url="http://x", transport=httpx.MockTransport(answer))
    app = FastAPI()
    _add_login(app, UiSettings.from_values(), Visitors(Sessions(60.0, 10), client))
    page = TestClient(app).post("/login", data={"key": "sk-spark-some"})
    assert page.status_code == status
    assert said in page.text
    assert ("no valid key" in page.text) == (status == 401)


def test_metrics_of_versions_stand_side_by_side() -> None:
    versions = [
        {"metrics": {"caption": {"exact": 0.5}}, "training_metrics": {"loss": 1.0}},
        {"metrics": {"caption": {"exact": 0.75, "cider": None}}, "training_metrics": {}},
    ]
    assert metric_rows(versions) == [
        ("caption: cider", [None, None]),
        ("caption: exact", [0.5, 0.75]),
        ("training: loss", [1.0, None]),
    ]


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, ("1 clip is", "1 has another caption")), (2, ("2 clips are", "2 have another caption"))],
)
def test_what_changed_is_said_of_one_and_of_many(count: int, said: tuple[str, ...]) -> None:
    names = ("clips", "videos", "frames", "scenes", "with_audio", "captioned", "transcribed")
    version = {"version": "v1", "created": "2026-01-02T03:04:05", "hours": 1.0}
    version |= dict.fromkeys(names, count)
    compared = {
        "dataset": "films", "before": version, "after": version, "same": count, "added": 0,
        "removed": 0, "changed": {"caption": count}, "examples": [],
    }  # fmt: skip
    html = render("comparison", compared=compared)
    assert all(words in html for words in said)


@pytest.mark.parametrize(("hours", "told"), [(1.5, "+30 min 0 s"), (0.5, "−30 min 0 s"), (1.0, "")])
def test_how_much_longer_a_version_is_stands_beside_it(hours: float, told: str) -> None:
    names = ("clips", "videos", "frames", "scenes", "with_audio", "captioned", "transcribed")
    before = {"version": "v1", "created": "2026-01-02T03:04:05", "hours": 1.0}
    before |= dict.fromkeys(names, 3)
    compared = {
        "dataset": "films", "before": before, "after": {**before, "hours": hours, "clips": 1},
        "same": 1, "added": 0, "removed": 2, "changed": {}, "examples": [],
    }  # fmt: skip
    html = render("comparison", compared=compared)
    changes = re.findall(r'<td class="sr-number">([^<]*)</td></tr>', html)
    assert changes == ["−2", *[""] * 6, told]


def test_how_many_of_the_frames_are_shown_is_said() -> None:
    seen = {
        "duration_s": 2.0, "scenes": [], "frame_times": [0.0, 1.0], "dropped": [], "width": 0,
        "height": 0, "has_audio": False, "subtitles": "", "thumbnails": [],
    }  # fmt: skip
    assert "<dd>2 (0 shown)</dd>" in render("clip", clip=seen)
    pictures = [{"time_s": 0.0, "jpeg": ""}, {"time_s": 1.0, "jpeg": ""}]
    assert "<dd>2</dd>" in render("clip", clip={**seen, "thumbnails": pictures})


def test_a_card_is_shown_without_its_yaml() -> None:
    assert without_front_matter("---\nlicense: mit\n---\n# Card\n") == "# Card\n"
    assert without_front_matter("# Card\n---\n") == "# Card\n---\n"
    assert without_front_matter("---\nnever ends") == "---\nnever ends"


def test_the_settings_of_a_build_are_yaml_that_says_each_once() -> None:
    assert build_settings("fps: 2\nsplit: none") == {"fps": 2, "split": "none"}
    assert build_settings("") == {}
    for text, said in (
        ("fps: 1\nfps: 2", "'fps' is given twice, in line 1 and in line 2"),
        ("fps: [", "not valid YAML"),
        ("- fps", "'name: value' lines"),
    ):
        with pytest.raises(gr.Error, match=said):
            build_settings(text)


@pytest.mark.parametrize("url", ["ftp://x", "http://user@host", "http://host/path", "host:8000"])
def test_the_servers_address_is_no_more_than_that(url: str) -> None:
    with pytest.raises(ConfigError, match="api_url"):
        UiSettings.from_values(api_url=url)


def test_the_log_of_a_job_is_read_when_it_is_unfolded() -> None:
    """Also while the job runs, and not at its end alone."""
    pages = build_pages(Visitors(Sessions(60.0, 10), httpx.AsyncClient()))
    names = {fn.fn.__name__ for fn in pages.fns.values() if "expand" in dict(fn.targets).values()}
    assert names == {"read_log"}


def test_a_page_shows_the_job_that_was_chosen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one that was chosen before by turns with it: the button stops the last."""

    class Running:
        async def events(self, method: str, path: str) -> AsyncIterator[tuple[str, Any]]:
            for _ in range(5):
                yield "job", {"id": path.split("/")[-2], "finished": None}

    @asynccontextmanager
    async def server(request: object) -> AsyncIterator[Running]:
        yield Running()

    visitors = Visitors(Sessions(60.0, 10), httpx.AsyncClient())
    monkeypatch.setattr(visitors, "server", server)
    monkeypatch.setattr(jobs_tab, "render", lambda _, job: job["id"])
    fns = [fn.fn for fn in build_pages(visitors).fns.values() if fn.fn is not None]
    follow: Any = next(inspect.unwrap(fn) for fn in fns if fn.__name__ == "follow")

    async def choose_both() -> tuple[list[Any], list[Any]]:
        panel = jobs_tab.Panel()
        first = follow("job-a", panel, None)
        begun = [(await anext(first))[0]]
        second = [shown async for shown, _ in follow("job-b", panel, None)]
        return begun + [shown async for shown, _ in first], second

    before, after = asyncio.run(choose_both())
    assert before == ["job-a", gr.skip()]
    assert after == ["job-b"] * 5

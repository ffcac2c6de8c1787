"""The local web app: the report while a run goes on, and the page for blind comparison.

No path of a request reaches the file system: what is served are routes and a fixed set of names.
Without a token only requests by this machine's own names are answered, so no other site's page can
read it through a browser by a name that it points here; writing asks for JSON of the same origin.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from cai_jax.datasets import prompts as shipped
from cai_jax.review import page, results, tasks
from cai_jax.review.choices import BETTER, SKIP, Choice, Choices
from cai_jax.review.overview import overview
from cai_jax.review.rows import FOLDERS, Row, rows, version

ROWS_A_PAGE = 500
LONGEST_NAME = 60
LONGEST_BODY = 10_000  # bytes of a POST
COOKIE = "cai_jax_token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


class Server:
    """What the routes answer from: the runs' records and the raters' choices.

    Args:
      workdirs: of runs, finished or not.
      choices: where people's choices are kept.
      check_every, overlap: as in `tasks.next_task`.
    """

    def __init__(
        self, workdirs: Sequence[Path], choices: Choices, *, check_every: int, overlap: float
    ):
        self.workdirs, self.choices = list(workdirs), choices
        self.check_every, self.overlap = check_every, overlap
        self._checks = tasks.attention_checks(shipped.label_pairs())
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, tuple[list[Row], int]]] = {}  # view -> (version, rows)
        self._compared: tuple[str, list[tasks.Task], list] = ("", [], [])
        self._results: tuple[Any, dict[str, Any]] = (None, {})
        self.why = ""  # why there is nothing to compare

    def overview(self) -> dict[str, Any]:
        found = {view: self.rows(view) for view in FOLDERS}
        return {
            "written": "",
            "runs": [overview(workdir) for workdir in self.workdirs],
            "rows": {view: [len(made), there] for view, (made, there) in found.items()},
        }

    def versions(self) -> dict[str, str]:
        """What changes with each view, and with the overview."""
        found = {view: version(self.workdirs, view) for view in FOLDERS}
        done = [
            str(file)
            for workdir in self.workdirs
            for file in [*workdir.glob("*/done.json"), *workdir.glob("summary.json")]
        ]
        return {**found, "overview": " ".join([*done, *found.values()])}

    def rows(self, view: str) -> tuple[list[Row], int]:
        """As `rows.rows`, read again where records have changed."""
        with self._lock:
            now = version(self.workdirs, view)
            if view not in self._rows or self._rows[view][0] != now:
                self._rows[view] = now, rows(self.workdirs, view)
            return self._rows[view][1]

    def tasks(self) -> tuple[list[tasks.Task], list]:
        """(pairs to compare, ties); none, and `why`, while an evaluation is not finished."""
        now = version(self.workdirs, "answers")
        if self._compared[0] != now or self.why:
            try:
                self._compared = (now, *tasks.tasks_of_runs(self.workdirs))
                self.why = "" if self._compared[1] else "No two answers differ."
            except (ValueError, OSError) as error:
                self._compared, self.why = (now, [], []), str(error)
        return self._compared[1], self._compared[2]

    def known(self) -> dict[str, tasks.Task]:
        return {task.id: task for task in [*self.tasks()[0], *self._checks]}

    def task(self, rater: str) -> dict[str, Any]:
        """What a rater sees next, and how far they are."""
        pairs, standing = self.tasks()[0], self.choices.standing()
        mine = {c.task for c in standing if c.rater == rater}
        found = tasks.next_task(
            rater, pairs, self._checks, standing,
            check_every=self.check_every, overlap=self.overlap,
        )  # fmt: skip
        others = {c.task for c in standing if c.rater != rater and c.prob_a is not None}
        of_mine = [
            t for t in pairs if t.id in mine or t.id not in others or tasks.shared(t, self.overlap)
        ]
        return {
            "task": found and found.shown(rater),
            "done": sum(t.id in mine for t in of_mine),
            "total": len(of_mine),
            "undo": bool(mine),
            "why": self.why,
        }

    def results(self) -> dict[str, Any]:
        standing = self.choices.standing()
        _, ties = self.tasks()
        key = tuple(standing), self._compared[0]
        if self._results[0] != key:
            self._results = key, results.results(self.known(), ties, standing)
        return self._results[1]


def app(server: Server, token: str = "") -> Starlette:
    """The routes.

    Args:
      token: that every visitor must bring, once as ?token= and then as a cookie; none if empty.
    """

    def show(title: str, scripts: Sequence[str]) -> Callable[[Request], Awaitable[Response]]:
        text = page.linked(title, scripts)

        async def shown(request: Request) -> Response:
            return HTMLResponse(text)

        return shown

    def answer(of: Callable[[], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(of))

        return answered

    files = page.static()

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return _error("there is no such file", 404)
        return Response(files[name], media_type=TYPES[Path(name).suffix])

    async def some_rows(request: Request) -> Response:
        view, after = request.path_params["view"], request.query_params.get("after", "0")
        if view not in FOLDERS or not after.isdecimal():
            return _error("there are no such rows", 404)
        (found, _), start = await run_in_threadpool(server.rows, view), int(after)
        part = found[start : start + ROWS_A_PAGE]
        return JSONResponse({"rows": part, "more": start + len(part) < len(found)})

    async def task(request: Request) -> Response:
        if not (rater := _name(request.query_params.get("rater"))):
            return _error("give a name of 1 to 60 characters", 400)
        return JSONResponse(await run_in_threadpool(server.task, rater))

    async def choose(request: Request) -> Response:
        said = await _body(request)
        rater, of = _name(said.get("rater")), said.get("task")
        known = await run_in_threadpool(server.known)
        valid = isinstance(of, str) and of in known and said.get("choice") in (*BETTER, SKIP)
        if not (rater and valid):
            return _error("there is no such pair or choice; load the page again", 400)
        choice = Choice(rater, of, known[of].swapped(rater), said["choice"])
        await run_in_threadpool(server.choices.add, choice)
        return JSONResponse(await run_in_threadpool(server.task, rater))

    async def undo(request: Request) -> Response:
        if not (rater := _name((await _body(request)).get("rater"))):
            return _error("give a name of 1 to 60 characters", 400)
        await run_in_threadpool(server.choices.undo, rater)
        return JSONResponse(await run_in_threadpool(server.task, rater))

    async def export(request: Request) -> Response:
        standing, (_, ties) = server.choices.standing(), server.tasks()
        made = {
            "snapshot_comparisons.jsonl": lambda: results.snapshot_lines(
                server.known(), ties, standing
            ),
            "comparisons.jsonl": lambda: results.comparison_lines(server.known(), standing),
        }
        name = request.path_params["name"]
        if name not in made:
            return _error("there is no such file", 404)
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(made[name](), media_type="application/x-ndjson", headers=disposition)

    return Starlette(
        routes=[
            Route("/", show("cai_jax", page.REPORT)),
            Route("/rate", show("cai_jax: compare answers", page.RATE)),
            Route("/results", show("cai_jax: results of raters", page.RESULTS)),
            Route("/static/{name}", static),
            Route("/api/overview", answer(server.overview)),
            Route("/api/versions", answer(server.versions)),
            Route("/api/rows/{view}", some_rows),
            Route("/api/rate/task", task),
            Route("/api/rate/choice", choose, methods=["POST"]),
            Route("/api/rate/undo", undo, methods=["POST"]),
            Route("/api/rate/results", answer(server.results)),
            Route("/export/{name}", export),
        ],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=_guard(token)),
            Middleware(GZipMiddleware, minimum_size=10_000),
        ],
        exception_handlers={ValueError: _told, OSError: _told},
    )


def _guard(token: str) -> Callable:
    """Asks for the token and, of what writes, for JSON of the same origin; adds the headers."""

    async def guarded(request: Request, call: Callable) -> Response:
        given = request.query_params.get("token") or request.cookies.get(COOKIE, "")
        if not token and _host(request) not in LOOPBACK:
            response = _error("this server answers by this machine's own names alone", 400)
        elif token and not secrets.compare_digest(given.encode(), token.encode()):
            response = _error("this address needs the token that the server printed", 403)
        elif token and "token" in request.query_params:  # out of the address and the history
            response = RedirectResponse(request.url.path, 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="lax")
        elif request.method == "POST" and not _short(request):
            response = _error("a choice is shorter than this", 413)
        elif request.method == "POST" and not _own(request):
            response = _error("only the server's own pages may write", 403)
        else:
            response = await call(request)
        response.headers.update(HEADERS)
        return response

    return guarded


def _host(request: Request) -> str | None:
    """The name that the server was asked by."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _own(request: Request) -> bool:
    origin = request.headers.get("origin")
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return own and request.headers.get("content-type", "").startswith("application/json")


def _short(request: Request) -> bool:
    length = request.headers.get("content-length", "")
    return length.isdecimal() and int(length) <= LONGEST_BODY


async def _body(request: Request) -> dict[str, Any]:
    """A POST's JSON object; empty where it is none."""
    try:
        said = await request.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _name(value: Any) -> str:
    """A rater's name; empty where it is none."""
    name = value.strip() if isinstance(value, str) else ""
    return name if len(name) <= LONGEST_NAME and name.isprintable() else ""


async def _told(request: Request, error: Exception) -> Response:
    return _error(str(error), 500)


def _error(said: str, status: int) -> Response:
    return JSONResponse({"error": said}, status)

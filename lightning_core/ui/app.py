"""The addresses of the page. Each is a place: what it shows depends on its address and on the lake alone."""

from __future__ import annotations

import contextlib
import math
import shlex
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lightning_core.config import TrackingSettings
from lightning_core.epoch.what_if import kept
from lightning_core.errors import LightningError, Missing
from lightning_core.events import named, when
from lightning_core.files import locked
from lightning_core.home_format import require_readable
from lightning_core.lake import ask, user_sql
from lightning_core.lake.manifest import LakeError
from lightning_core.policies.removed import removals
from lightning_core.policies.store import PolicyStore, StoreError
from lightning_core.tracking import traces
from lightning_core.tracking.mlflow_backend import tracking_uri
from lightning_core.ui import asking, charts, guard, words
from lightning_core.ui.figures import Figures, Row
from lightning_core.ui.rollout import expected, got, see
from lightning_core.ui.tokens import pushed
from lightning_core.ui.words import place, reward_rule

PREPARES = "prepare the page"  # a thread's name
_HERE = Path(__file__).parent
_A_PAGE = 100  # rollouts
_ANSWERS = 8  # of a task, at first
_FOLLOWS_S = 4
# What the curves of a run go over: a column of `sql/page/curve`, and what its axis is called.
_ACROSS = {
    "rollouts": ("trained_on", "training rollouts"),
    "time": ("minutes", "minutes"),
    "epochs": ("epoch", "epochs trained before"),
}
_SORTS = ("worst", "best", "longest", "slowest")


def app(home: Path, allowed: guard.Allowed) -> Starlette:
    """Return the app that serves the page of the lake in a home; `allowed` says who is let in."""
    page = _Page(home)
    return Starlette(
        routes=[
            Route("/", page.runs),
            Route("/policies", page.policies),
            Route("/ask", page.ask),
            Route("/search", page.search),
            Route("/favicon.ico", lambda _: FileResponse(_HERE / "static" / "icon.svg")),
            Route("/run/{run}", page.run),
            Route("/run/{run}/tasks", page.tasks),
            Route("/run/{run}/rollouts", page.rollouts),
            Route("/run/{run}/compare", page.compare),
            Route("/run/{run}/task/{task:path}", page.task),
            Route("/run/{run}/group/{group:path}", page.group),
            Route("/run/{run}/rollout/{rollout:path}", page.rollout),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=guard.middleware(allowed),
        lifespan=page.life,
        exception_handlers={LightningError: page.failed, HTTPException: page.failed, duckdb.Error: page.failed},
    )


def templates() -> jinja2.Environment:
    """Return the templates, in which everything is text unless it is marked as markup."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {word.__name__: word for word in (got, pushed, when, *words.FILTERS)}
    found.globals |= {"place": place, "charts": charts, "named": named}
    return found


class _Page:
    def __init__(self, home: Path) -> None:
        require_readable(home)
        self.home, self.figures, self.templates = home, Figures(home / "lake"), templates()

    @contextlib.asynccontextmanager
    async def life(self, _: Starlette) -> AsyncIterator[None]:
        """Open the catalog before anybody asks, close it at the end."""
        threading.Thread(target=self.figures.prepare, name=PREPARES, daemon=True).start()
        yield
        self.figures.close()

    def shown(self, request: Request, template: str, **context: Any) -> HTMLResponse:
        given = {"path": request.url.path, "query": dict(request.query_params), "run": request.path_params.get("run")}
        again = 1 if self.figures.renewing else _FOLLOWS_S
        return HTMLResponse(self.templates.get_template(template).render(given | {"again": again} | context))

    async def failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status, message = error.status_code, error.detail
        elif isinstance(error, duckdb.Error):
            message = str(ask.of_another_version(self.home / "lake", error))
            status = 500
        else:
            status, message = 404 if isinstance(error, Missing | LakeError | StoreError) else 400, str(error)
        page = self.shown(request, "failed.html", message=message)
        page.status_code = status
        return page

    def runs(self, request: Request) -> Response:
        found = self.figures.ask("runs")
        for row in found.rows:
            row["running"] = self._running(row["run"])
        return self.shown(request, "runs.html", runs=found)

    def run(self, request: Request) -> Response:
        run = request.path_params["run"]
        by = request.query_params.get("by", "rollouts")
        curve = self.figures.ask("curve", run=run)
        if not curve.rows:
            raise Missing(f"run {run!r} has no rollout yet, or is no run of {self.home}")
        own, examples = ([row for row in curve.rows if row["imitated"] is is_it] for is_it in (False, True))
        others = [row["run"] for row in self.figures.ask("runs").rows if row["run"] != run]
        other = request.query_params.get("beside") or next(iter(others), None)
        across, unit = _ACROSS.get(by, _ACROSS["rollouts"])
        settings = self.figures.ask("settings", run=run, other=other)
        return self.shown(
            request,
            "run.html",
            live=self._running(run),
            by=by,
            curve=curve,
            reward=_line(own, "train", "reward", "reward_low", "reward_high", across, "reward"),
            imitated=_line(examples, "train", "reward", "reward_low", "reward_high", across, "reward of examples"),
            right=_line(curve.rows, "evaluate", "share_right", "right_low", "right_high", across, "held-out right"),
            domain=(0.0, max((row[across] or 0.0 for row in curve.rows), default=0.0)),
            across=unit,
            stages=self.figures.ask("stages", run=run),
            fates=self.figures.ask("where_rollouts_went", run=run),
            calls=self.figures.ask("where_calls_went", run=run, epoch=None),
            agents=self.figures.ask("trained_agents", run=run),
            what_ifs=kept(self.home, run),
            findings=self.figures.findings(run),
            gain=self.figures.ask("gain", run=run),
            reasons=self._reasons(run),
            others=others,
            other=other,
            settings=settings,
            given={row["setting"]: row["given"] for row in settings.rows},
            rule=reward_rule(settings.rows),
        )

    def tasks(self, request: Request) -> Response:
        run, mode = request.path_params["run"], request.query_params.get("mode", "train")
        found = self.figures.ask("tasks", run=run, mode=mode)
        epochs = sorted({cell["epoch"] for row in found.rows for cell in row["cells"]})
        for row in found.rows:
            row["by_epoch"] = {cell["epoch"]: cell for cell in row["cells"]}
        return self.shown(request, "tasks.html", live=self._running(run), mode=mode, tasks=found, epochs=epochs)

    def task(self, request: Request) -> Response:
        run, task = request.path_params["run"], request.path_params["task"]
        epochs = self.figures.ask("task_epochs", run=run, task_id=task)
        if not epochs.rows:
            raise Missing(f"run {run!r} has no rollout of task {task!r}")
        rollouts = self._rollouts(run, {"task": task})
        limit = None if request.query_params.get("answers") == "all" else _ANSWERS
        held_out = any(row["mode"] == "evaluate" for row in epochs.rows)  # others are in no row of it
        learned = self.figures.ask("learned_from", run=run, task_id=task) if held_out else None
        return self.shown(
            request,
            "task.html",
            task=task,
            epochs=epochs,
            rollouts=rollouts,
            learned=learned,
            answers=self.figures.ask("task_answers", run=run, task_id=task, limit=limit),
            expected=expected(rollouts.first["task"], rollouts.first["task_text"]),
            rule=self._rule(run),
        )

    def rollouts(self, request: Request) -> Response:
        run, asked = request.path_params["run"], {k: v for k, v in request.query_params.items() if v}
        found = self._rollouts(run, asked)
        skip = _whole(asked, "skip") or 0
        total = found.rows[0]["found"] if found.rows else 0
        others = {key: value for key, value in asked.items() if key != "skip"}
        pages = {
            name: f"?{urlencode(others | {'skip': at})}"
            for name, at in (("earlier", skip - _A_PAGE), ("more", skip + _A_PAGE))
            if 0 <= at < total
        }
        return self.shown(
            request,
            "rollouts.html",
            live=self._running(run),
            rollouts=found,
            total=total,
            skip=skip,
            pages=pages,
            filters=self.figures.ask("filters", run=run).first,
            asked=asked,
            sorts=_SORTS,
            reasons=self._reasons(run),
        )

    def group(self, request: Request) -> Response:
        run, group = request.path_params["run"], request.path_params["group"]
        found = self.figures.ask("group", run=run, group_id=group)
        if not found.rows:
            raise Missing(f"run {run!r} has no group {group!r}")
        return self.shown(
            request,
            "group.html",
            group=group,
            rollouts=found,
            expected=expected(found.first["task"], found.first["task_text"]),
            reasons=self._reasons(run),
            rule=self._rule(run),
        )

    def rollout(self, request: Request) -> Response:
        run, rollout = request.path_params["run"], request.path_params["rollout"]
        epoch = _whole(dict(request.query_params), "epoch")
        known = self.figures.ask("rollout", run=run, rollout_id=rollout, epoch=epoch)
        if not known.rows:
            raise Missing(f"run {run!r} has no rollout {rollout!r}")
        row = known.first
        try:
            seen = see(self.figures, self.home, run, rollout, row["epoch"])  # a finetuning may have taken it too
        except LakeError as error:
            live = self._running(run)
            return self.shown(request, "not_derived.html", live=live, row=row, why=str(error), sql=known.sql)
        group = self.figures.ask("group", run=run, group_id=row["group_id"])
        names = [other["rollout_id"] for other in group.rows]
        at = names.index(rollout) if rollout in names else 0
        raw = {"rollout_id": rollout, "attempt_id": seen.found["attempt_id"]}
        return self.shown(
            request,
            "rollout.html",
            seen=seen,
            row=row,
            sql=known.sql,
            group=group,
            reasons=self._reasons(run),
            rule=self._rule(run),
            mlflow=traces.address(self.home, run, row["mode"], row["epoch"], rollout),
            earned=self.figures.ask("earned", run=run, epoch=row["epoch"], **raw) if row["mode"] == "train" else None,
            opened_by=traces.opened_by(self._mlflow(run)),
            former=names[at - 1] if at > 0 else None,
            following=names[at + 1] if at + 1 < len(names) else None,
            epochs=self.figures.ask("task_epochs", run=run, task_id=row["task_id"]),
            raw=self.figures.ask("raw_spans", **raw) if "raw" in request.query_params else None,
        )

    def compare(self, request: Request) -> Response:
        run, asked = request.path_params["run"], dict(request.query_params)
        epochs = [row["epoch"] for row in self.figures.ask("curve", run=run).rows if row["mode"] == "evaluate"]
        if len(epochs) < 2:
            raise Missing(f"run {run!r} has {len(epochs)} evaluation(s); two are compared")
        before, after = _whole(asked, "before"), _whole(asked, "after")
        chosen = {"before": epochs[0] if before is None else before, "after": epochs[-1] if after is None else after}
        found = self.figures.ask("compare", run=run, **chosen)
        row = next((row for row in found.rows if row["task_id"] == asked.get("task")), None)
        rollouts = [] if row is None else [(row[f"rollout_{side}"], epoch) for side, epoch in chosen.items()]
        sides = []
        for rollout, epoch in rollouts:
            with contextlib.suppress(LakeError):  # not derived yet
                sides.append(see(self.figures, self.home, run, rollout, epoch))
        return self.shown(request, "compare.html", epochs=epochs, tasks=found, sides=sides, **chosen)

    def policies(self, request: Request) -> Response:
        found = []
        folder = self.home / "policies"
        for name in sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
            store = PolicyStore(self.home, name)
            named = {"served": store.current(), "best": store.best()}
            rows: list[Row] = [
                {"version": v, "named": [k for k, at in named.items() if at == v], "manifest": store.manifest(v)}
                for v in store.versions()
            ]
            rows += [{"version": v, "removed": str(why)} for v, why in removals(folder / name).items()]
            found.append((name, named["best"], named["served"], sorted(rows, key=lambda row: int(row["version"][1:]))))
        return self.shown(request, "policies.html", policies=found, home=shlex.quote(str(self.home)))

    def search(self, request: Request) -> Response:
        asked, run = request.query_params.get("q", "").strip(), request.query_params.get("run")
        if not asked:
            return RedirectResponse(place("", run) if run else "/", 303)
        found = self.figures.ask("search", words=asked, run=run)
        for row in found.rows:
            at = ("", row["run"]) if row["kind"] == "run" else (row["kind"], row["run"], row["id"])
            row["place"] = place(*at, epoch=row["epoch"])
        if found.rows and found.first["exact"]:
            return RedirectResponse(found.first["place"], 303)
        return self.shown(request, "search.html", words=asked, found=found, run=run)

    def ask(self, request: Request) -> Response:
        question, form = asking.asked_for(request.query_params), request.query_params.get("form")
        context: dict[str, Any] = {"question": question, "columns": [], "rows": [], "error": None}
        if question:
            try:
                if form in ("csv", "parquet"):
                    return asking.file(self.home / "lake", question, form)
                columns, rows = asking.answered(self.home / "lake", question)
                context |= {"columns": columns, "rows": rows, "chart": asking.chart_of(columns, rows)}
            except user_sql.QueryError as error:
                context["error"] = str(error)
        with self.figures.catalog() as con:
            context["dictionary"] = con.execute(
                "SELECT table_name, list({name: column_name, type: type, meaning: meaning} ORDER BY position) FROM columns GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        runs = [row["run"] for row in self.figures.ask("runs").rows]
        titles = asking.view_titles()
        limits = {"shown": asking.SHOWN_ROWS, "file": asking.FILE_ROWS}
        return self.shown(
            request, "ask.html", questions=asking.questions(), runs=runs, limits=limits, titles=titles, **context
        )

    def _reasons(self, run: str) -> dict[str, Row]:
        return {row["reason"]: row for row in self.figures.ask("reasons", run=run).rows}

    def _mlflow(self, run: str) -> str:
        given = {row["setting"]: row["given"] for row in self.figures.ask("settings", run=run, other=None).rows}
        return tracking_uri(TrackingSettings(mlflow_uri=given.get("tracking.mlflow_uri")), self.home)

    def _rule(self, run: str) -> list[str]:
        return reward_rule(self.figures.ask("settings", run=run, other=None).rows)

    def _rollouts(self, run: str, asked: dict[str, str]) -> Any:
        texts = {key: asked.get(key) for key in ("mode", "task", "agent", "version", "fate", "reason", "words", "sort")}
        numbers = {key: _number(asked, key) for key in ("low", "high")}
        solved = {"yes": True, "no": False}.get(asked.get("solved", ""))
        return self.figures.ask(
            "rollouts",
            run=run,
            epoch=_whole(asked, "epoch"),
            solved=solved,
            limit=_A_PAGE,
            skip=max(_whole(asked, "skip") or 0, 0),
            **texts,
            **numbers,
        )

    def _running(self, run: str) -> bool:
        """Return whether a process works on the run just now."""
        lock = self.home / "lake" / "manifests" / run / "lock"
        if not lock.is_file():
            return False
        with locked(lock, wait=False, shared=True) as got:
            return not got


def _line(rows: list[Row], mode: str, value: str, low: str, high: str, across: str, name: str) -> charts.Line:
    shown = [r for r in rows if r["mode"] == mode and None not in (r[value], r[low], r[across])]
    shown.sort(key=lambda row: row[across])
    points = [(float(row[across]), row[value], row[low], row[high]) for row in shown]
    return charts.Line(name, points, [row["name"] for row in shown])


def _whole(asked: dict[str, str], key: str) -> int | None:
    found = _number(asked, key)
    return None if found is None else int(found)


def _number(asked: dict[str, str], key: str) -> float | None:
    given = asked.get(key)
    if not given:
        return None
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or abs(found) > 2**53:
        raise HTTPException(400, f"{key}={given[:50]}: write a number")
    return found

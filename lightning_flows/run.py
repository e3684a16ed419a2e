"""A run in Python, for notebooks and scripts: train it, and read its tables."""

from __future__ import annotations

import contextlib
import io
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from lightning_core.config import Settings
from lightning_core.lake import catalog
from lightning_core.settings_file import load_settings, make_settings

if TYPE_CHECKING:
    from rich.console import Console

    from lightning_core.ui.rollout import Seen


class Run:
    """One run of a settings file.

        run = lightning_flows.Run("settings.yaml")
        run.train(epochs=2)
        run.rollouts.df()  # pandas; .pl() polars, .pl(lazy=True) its LazyFrame, .to_arrow_table() Arrow
        run.sql("SELECT agent, avg(reward) FROM triplets GROUP BY ALL").show()
        run.rollout(run.sql("FROM rollouts SELECT rollout_id").fetchall()[0][0])  # a notebook shows it in colours

    Every view and table of the catalog is an attribute, with the rows of this run: `lightning-flows sql` lists them.
    """

    def __init__(self, settings: Path | str | Settings, overrides: Mapping[str, Any] | None = None) -> None:
        """Read a settings file; `overrides` maps dotted keys to values. Raises SettingsError, naming file and key."""
        self.settings = settings if isinstance(settings, Settings) else load_settings(settings, dict(overrides or {}))
        self._opened: tuple[int | None, duckdb.DuckDBPyConnection] | None = None

    def train(self, epochs: int | None = None) -> list[dict[str, Any]]:
        """Train the epochs that are left of so many (default: of the settings'), as `lightning-flows train`; returns a dict an epoch.

        Runs of several homes train side by side: `await asyncio.gather(asyncio.to_thread(a.train), asyncio.to_thread(b.train))`;
        those of one home share its policies and vLLM, and train one after another. Raises SettingsError, before anything starts, with all that the work would end by.
        """
        settings = self.settings
        if epochs is not None:
            settings = make_settings(settings.model_dump(exclude_unset=True), {"epochs": epochs})
        with _flows(settings):
            from lightning_flows.flows.train import train

            return train(settings)

    def evaluate(self, epoch: int | None = None) -> dict[str, Any]:
        """Try the held-out tasks with the versions after so many epochs (null: after all that were trained)."""
        with _flows(self.settings):
            from lightning_flows.flows.evaluate import evaluate

            return evaluate(self.settings, epoch)

    def rollout(self, name: str, epoch: int | None = None) -> Rollout:
        """Tell a rollout, or the newest one of a task, of its newest epoch or of this one. Raises LakeError with names like it."""
        from lightning_core.ui.figures import Figures
        from lightning_core.ui.rollout import choose, see

        home = self.settings.home
        with contextlib.closing(Figures(home / "lake")) as figures:
            return Rollout(see(figures, home, *choose(figures, name, self.settings.run, epoch)))

    def sql(self, query: str, **parameters: Any) -> duckdb.DuckDBPyRelation:
        """Ask the catalog, over all runs of the home; `$name` in the query is a parameter. Raises FileNotFoundError before the
        first rollouts."""
        return self._catalog().sql(query, params=parameters)

    def __getattr__(self, name: str) -> duckdb.DuckDBPyRelation:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            table = self._catalog().table(name)
        except duckdb.CatalogException:
            raise AttributeError(
                f"the catalog has no table or view {name!r}; `lightning-flows sql` lists them"
            ) from None
        return table.filter(f"run = '{self.settings.run}'") if "run" in table.columns else table

    def __dir__(self) -> list[str]:
        names: list[str] = [*super().__dir__()]
        with contextlib.suppress(FileNotFoundError):
            names += [name for (name,) in self.sql("SELECT DISTINCT table_name FROM columns").fetchall()]
        return names

    def _catalog(self) -> duckdb.DuckDBPyConnection:
        """The newest catalog; what was asked of an older one stays with that."""
        root = self.settings.home / "lake"
        built = catalog.built_ns(root)
        if self._opened is None or self._opened[0] != built:
            opened = contextlib.ExitStack()
            self._opened = built, opened.enter_context(catalog.connect_alone(root))
            weakref.finalize(self, opened.close)
        return self._opened[1]


@contextlib.contextmanager
def _flows(settings: Settings) -> Iterator[None]:
    from lightning_core.checks.check import require
    from lightning_flows.flows.prefect_api import prefect_api

    require(settings, "train")
    with prefect_api(settings.home):
        yield


@dataclass(frozen=True, repr=False)
class Rollout:
    """A rollout as `lightning-flows explain` tells it: its calls, replies, reward and advantages; a notebook shows it in colours."""

    seen: Seen

    def __repr__(self) -> str:
        return self._told().export_text()

    def _repr_html_(self) -> str:
        return self._told().export_html(
            inline_styles=True, code_format='<pre style="white-space: pre-wrap">{code}</pre>'
        )

    def _told(self) -> Console:
        from rich.console import Console

        from lightning_core.ui.terminal import story

        console = Console(record=True, file=io.StringIO(), width=120, highlight=False, force_jupyter=False)
        console.print(story(self.seen))
        return console

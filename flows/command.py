"""What the commands of `lightning-flows` share: their options, the settings they load, and how Ctrl-C ends them."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.stages import STAGES
from lightning_core.settings_file import load_settings, read_yaml
from lightning_flows.flows.display import shown, verbose_option
from lightning_flows.flows.prefect_api import prefect_api

if TYPE_CHECKING:
    from lightning_core.checks.check import Work

ROOT = Path(__file__).resolve().parents[1]  # of the repository, or of what is installed: examples/, prefect.yaml
settings_argument = click.argument("settings_file", type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set rollout.group_size=4."
)
home_option = click.option(
    "--home", type=click.Path(path_type=Path), default=Path("var"), show_default=True, help="Folder of the runs."
)
from_option = click.option(
    "--from",
    "from_stage",
    type=click.Choice(list(STAGES)),
    help="Repeat this stage and those after it, finished or not.",
)


def of_a_home(sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the decorator for the options `--home` and `--settings`: its function gets the folder, and the settings or None.

    sections: what is read of the settings beside `home`, for `--help`.
    """

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--home", type=click.Path(path_type=Path), help="Folder of the runs; default: that of the settings, or var."
        )
        @click.option(
            "--settings",
            "settings_file",
            type=click.Path(path_type=Path),
            help=f"Settings file, read for `home` and {sections}.",
        )
        @functools.wraps(function)
        def command(home: Path | None, settings_file: Path | None, **options: Any) -> None:
            settings = load_settings(settings_file) if settings_file is not None else None
            function(home or (settings.home if settings is not None else Path("var")), settings, **options)

        return command

    return declare


def group_home_option(group: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option `--home` of a group of commands and of each of them; `home_of` says which holds."""
    text = f"Folder of the runs; default: that of `{group}`, or var."
    return click.option("--home", type=click.Path(path_type=Path), help=text)


def home_of(home: Path | None) -> Path:
    """Return the folder that a command was given, else its group, else `var`."""
    return home or click.get_current_context().find_object(Path) or Path("var")


def settings_command(
    name: str | None = None, *, verbose: bool = True
) -> Callable[[Callable[..., None]], click.Command]:
    """Return the decorator of a command over a settings file: its function gets the settings, with `--set` on top, and its own options."""

    def declare(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def command(settings_file: Path, assignments: tuple[str, ...], **options: Any) -> None:
            function(load(settings_file, assignments), **options)

        for option in (*([verbose_option] if verbose else []), set_option, settings_argument):
            option(command)
        return click.command(name)(command)

    return declare


def load(path: Path, assignments: tuple[str, ...]) -> Settings:
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: write it as KEY=VALUE")
        overrides[key] = read_yaml(value, f"--set {key}")
    return load_settings(path, overrides)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End with one line at Ctrl-C: what was started is stopped by then, what is finished is kept."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted; everything that was started is stopped. The same command goes on from here.", err=True
        )
        sys.exit(130)


def checked(settings: Settings, work: Work) -> None:
    """Raise SettingsError with all that the work would end by; a second call in this process looks at nothing again.

    What it finds is printed: the run, and with it its log, begins afterwards.
    """
    from lightning_core.checks.check import require

    def say(text: str) -> None:
        click.echo(text, err=True)

    require(settings, work, say=say, warn=lambda text: say(f"warning: {text}"))


@contextlib.contextmanager
def flow_of(settings: Settings, work: Work, whole_run: bool = False) -> Iterator[None]:
    """Run a command's flow in the block: check all that it needs, show it (flows/display.py), provide Prefect's API.

    Ctrl-C ends it in one line. Raises SettingsError with all that is wrong before Prefect starts.
    """
    with interruptible():
        checked(settings, work)
        with shown(settings, whole_run), prefect_api(settings.home):
            yield

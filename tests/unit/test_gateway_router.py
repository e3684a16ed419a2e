"""Which endpoint a path means, and that no spelling of a path reaches another one."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest

from lightning_core.gateway.http import HttpError
from lightning_core.gateway.router import Router


async def chat(scope: Any, receive: Any, send: Any) -> None: ...


async def routes(scope: Any, receive: Any, send: Any) -> None: ...


async def model(scope: Any, receive: Any, send: Any) -> None: ...


ROUTER = Router()
ROUTER.add("/rollouts/{rollout_id}/attempts/{attempt_id}/v1/chat", "POST", chat)
ROUTER.add("/v1/models/{model:path}", "GET", model)
ROUTER.add("/admin/routes", "GET", routes)


def find(method: str, raw: str) -> tuple[Any, dict[str, str]]:
    scope: dict[str, Any] = {"raw_path": raw.encode(), "path": unquote(raw), "method": method}
    return ROUTER.find(scope), scope["path_params"]


def test_a_part_may_hold_an_escaped_slash_and_the_last_may_hold_any() -> None:
    assert find("POST", "/rollouts/a%2Fb/attempts/1/v1/chat") == (chat, {"rollout_id": "a/b", "attempt_id": "1"})
    assert find("GET", "/v1/models/org/name@v0001") == (model, {"model": "org/name@v0001"})
    assert find("HEAD", "/admin/routes") == (routes, {})


@pytest.mark.parametrize(
    "path",
    [
        *("//admin/routes", "/admin//routes", "/admin/routes/", "/Admin/routes", "/admin/ROUTES", "/./admin/routes"),
        *(
            "/v1/../admin/routes",
            "/v1/%2e%2e/admin/routes",
            "/admin%2Froutes",
            "/v1/models/",
            "/",
            "",
            "/admin;x/routes",
        ),
        *(
            "/rollouts/a/attempts/1/admin/routes",
            "/rollouts//attempts/1/v1/chat",
            "/rollouts/a/attempts/1/../2/v1/chat",
        ),
    ],
)
def test_another_spelling_is_another_path(path: str) -> None:
    with pytest.raises(HttpError) as refused:
        find("GET", path)
    assert refused.value.status == 404


def test_another_method_is_405_and_says_which_there_are() -> None:
    with pytest.raises(HttpError) as refused:
        find("DELETE", "/admin/routes")
    assert refused.value.status == 405 and refused.value.headers["Allow"] == "GET, HEAD"

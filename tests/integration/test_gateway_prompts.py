"""The gateway serves a rollout its versions of the prompts; what its agent sends stays on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lightning_core import names
from lightning_core.prompts.served import PromptSet, ServedPrompt
from tests.canned_vllm import PROMPT_IDS
from tests.gateway_rig import Rig, int32, last, rig

SEED = "You write stories.\n"
BETTER = "You write very short stories.\n"
USER: Any = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


def served(text: str = BETTER, match: str | None = None, version: str = "p0001", **more: ServedPrompt) -> PromptSet:
    writer = ServedPrompt(version=version, text=text, seeds=(SEED,), match=match)
    return PromptSet(prompts={"writer": writer, **more})


def client(server: Rig, prompts: PromptSet | None, attempt: str = "a1") -> openai.OpenAI:
    if prompts is not None:
        prompts.keep(server.home)
    token = server.handle.mint("r.1", attempt, "train", prompts=prompts.digest if prompts is not None else None)
    return openai.OpenAI(base_url=server.base_url("r.1", attempt), api_key=token, max_retries=0)


def asked(server: Rig, prompts: PromptSet | None, content: Any, role: str = "system") -> Any:
    """What the model got for this message."""
    messages: Any = [{"role": role, "content": content}, USER]
    client(server, prompts).chat.completions.create(model="policy", messages=messages)
    got = server.canned.requests[-1]["messages"]
    assert got[1] == USER
    assert json.loads(last(server)[names.GEN_AI_INPUT_MESSAGES]) == messages  # as they were sent
    return got[0]["content"]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_version_takes_the_place_of_the_seed(server: Rig, role: str) -> None:
    assert asked(server, served(), SEED, role) == "You write very short stories.\n"
    assert asked(server, served(), "You write stories.", role) == "You write very short stories."
    assert asked(server, served(), "You write stories. Today of cats.", role) == (
        "You write very short stories. Today of cats."
    )
    span = last(server)
    assert json.loads(span[names.PROMPTS_SERVED]) == [
        {"message": 0, "prompts": {"writer": "p0001"}, "content": "You write very short stories. Today of cats."}
    ]
    assert int32(span[names.PROMPT_TOKEN_IDS]) == PROMPT_IDS and names.UNTRAINABLE not in span


def test_parts_of_a_message_are_looked_through(server: Rig) -> None:
    parts = [{"type": "text", "text": SEED, "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "More."}]
    assert asked(server, served(), parts) == [
        {"type": "text", "text": BETTER, "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "More."},
    ]


@pytest.mark.parametrize(
    "content", ["Something else.", "Said: You write stories.", BETTER, BETTER.strip() + " Today of cats.", "", [], None]
)
def test_what_is_no_seed_is_left_alone(server: Rig, content: Any) -> None:
    assert asked(server, served(), content) == content
    assert names.PROMPTS_SERVED not in last(server)


def test_a_version_that_goes_on_from_the_seed_is_not_put_in_twice(server: Rig) -> None:
    longer = "You write stories. Short ones."
    assert asked(server, served(longer), SEED) == longer + "\n"
    assert asked(server, served(longer), longer) == longer


def test_only_system_messages_are_looked_at(server: Rig) -> None:
    assert asked(server, served(), SEED, "user") == SEED


def test_what_a_regex_finds_is_replaced_and_its_groups_fill_the_fields(server: Rig) -> None:
    prompts = served("Stories for {who}, {never} {who}.", match=r"You write for (?P<who>\w+)\.")
    assert asked(server, prompts, "Hello. You write for Ann. Bye.") == "Hello. Stories for Ann, {never} Ann. Bye."
    # An agent that asked for the prompt itself has it already.
    wide = served("You write for {who}. Well.", match=r"You write for (?P<who>\w+)\.")
    assert asked(server, wide, "You write for Ann.") == "You write for Ann. Well."
    assert asked(server, wide, "You write for Ann. Well.") == "You write for Ann. Well."


def test_a_pattern_replaces_nothing_where_the_agents_own_text_is_what_is_served(server: Rig) -> None:
    # The file's only text is served, so the agent has it; the pattern finds more of it than its groups fill again.
    seed = served(SEED, match="You write for .*", version="p0000")
    for content in ("Hello. You write for Ann. Bye.", "You write for Ann, who is old."):
        assert asked(server, seed, content) == content
        assert names.PROMPTS_SERVED not in last(server)


def test_a_group_that_found_an_empty_text_fills_its_field_with_it(server: Rig) -> None:
    prompts = served("Stories{who}, {never}.", match=r"Write(?P<who>( for \w+)?)(?P<never>x)?\.")
    assert asked(server, prompts, "Write.") == "Stories, {never}."


def test_each_prompt_has_its_place(server: Rig) -> None:
    longer = ServedPrompt(version="p0002", text="Judge.", seeds=("You write stories. You judge them.",), match=None)
    assert asked(server, served(critic=longer), "You write stories. You judge them. Now.") == "Judge. Now."
    assert asked(server, served(critic=longer), "You write stories. Now.") == "You write very short stories. Now."


def test_rollouts_beside_each_other_have_versions_of_their_own(server: Rig) -> None:
    one, other = client(server, served("One."), "a1"), client(server, served("Other.", version="p0002"), "a2")
    got = []
    for made in (one, other, client(server, None, "a3"), one):
        made.chat.completions.create(model="policy", messages=[{"role": "system", "content": SEED}])
        got.append(server.canned.requests[-1]["messages"][0]["content"])
    assert got == ["One.\n", "Other.\n", SEED, "One.\n"]


def test_where_the_seed_is_what_is_served_nothing_changes(server: Rig) -> None:
    for content in (SEED, "You write stories. And more."):
        bodies, spans = [], []
        for prompts in (None, served(SEED, version="p0000")):
            client(server, prompts).chat.completions.create(
                model="policy", messages=[{"role": "system", "content": content}], temperature=0.5
            )
            bodies.append(json.dumps(server.canned.requests[-1]))
            spans.append(last(server))
        assert bodies[0] == bodies[1]
        assert spans[0].keys() == spans[1].keys() - {names.PROMPTS_FOUND}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (SEED, ["writer"]),  # and replaced
        (BETTER + "More.", ["writer"]),  # the agent has it
        ([{"type": "text", "text": "First."}, {"type": "text", "text": BETTER}], ["writer"]),
        ("Said: " + SEED, []),
        (None, []),
    ],
)
def test_the_span_says_which_prompts_a_call_had(server: Rig, content: Any, found: list[str]) -> None:
    asked(server, served(), content)
    assert json.loads(last(server)[names.PROMPTS_FOUND]) == found


def test_a_prompt_that_an_agent_fills_in_is_found_by_its_fields_or_its_regex(server: Rig) -> None:
    fields = served("You write for {who}. Well.")
    asked(server, fields, "You write for Ann. Well. Now.")
    assert json.loads(last(server)[names.PROMPTS_FOUND]) == ["writer"]
    seed = served(SEED, match="You write for .*", version="p0000")
    asked(server, seed, "Hello. You write for Ann.")
    assert json.loads(last(server)[names.PROMPTS_FOUND]) == ["writer"]
    asked(server, None, SEED)
    assert names.PROMPTS_FOUND not in last(server), "this rollout is served none"


def test_the_responses_api_is_served_too(server: Rig) -> None:
    made = client(server, served())
    reply = made.responses.create(model="policy", instructions=SEED, input="hi")
    assert reply.instructions == SEED
    got = server.canned.requests[-1]["messages"]
    assert got == [{"role": "system", "content": BETTER}, USER]
    assert json.loads(last(server)[names.GEN_AI_INPUT_MESSAGES])[0]["content"] == SEED
    item: Any = {"role": "developer", "content": [{"type": "input_text", "text": SEED}]}
    first = made.responses.create(model="policy", input=[item, USER])
    assert server.canned.requests[-1]["messages"][0]["content"] == [{"type": "text", "text": BETTER}]
    made.responses.create(model="policy", input="again", previous_response_id=first.id)
    assert server.canned.requests[-1]["messages"][0]["content"] == [{"type": "text", "text": BETTER}]


def test_a_stream_is_served_too(server: Rig) -> None:
    list(
        client(server, served()).chat.completions.create(
            model="policy", messages=[{"role": "system", "content": SEED}], stream=True
        )
    )
    assert server.canned.requests[-1]["messages"][0]["content"] == BETTER
    assert names.PROMPTS_SERVED in last(server)


def test_prompts_that_cannot_be_read_are_the_infrastructures_failure(server: Rig) -> None:
    token = server.handle.mint("r.1", "lost", "train", prompts="0123456789abcdef")
    reply = httpx.post(
        server.base_url("r.1", "lost") + "/chat/completions",
        headers={"Authorization": f"Bearer {token}"},
        json={"model": "policy", "messages": [{"role": "system", "content": SEED}]},
    )
    assert reply.status_code == 503
    assert "the prompts of a rollout cannot be read" in reply.json()["error"]["message"]
    assert server.handle.attempt("r.1", "lost")["infrastructure_errors"]


def test_a_token_says_whether_its_rollout_was_opened_and_what_it_is_served() -> None:
    from lightning_core.gateway import attempt_tokens

    for opened in (False, True):
        for prompts in (None, "0123456789abcdef"):
            scope = attempt_tokens.verify(
                "s", attempt_tokens.mint("s", "r", "a", "train", opened=opened, prompts=prompts)
            )
            assert scope == attempt_tokens.AttemptScope("r", "a", "train", opened, prompts)


def test_the_set_is_found_by_its_digest_alone(tmp_path: Path) -> None:
    from lightning_core.prompts.served import read_set
    from lightning_core.prompts.store import PromptError

    prompts = served()
    prompts.keep(tmp_path)
    assert read_set(tmp_path, prompts.digest) == prompts
    file = tmp_path / "prompts" / ".served" / f"{prompts.digest}.json"
    file.write_text(file.read_text().replace("short", "long"))
    for digest, problem in ((prompts.digest, "not those that were written"), ("../../x", "no digest of prompts")):
        with pytest.raises(PromptError, match=problem):
            read_set(tmp_path, digest)

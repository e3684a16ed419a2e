"""Alerts by Prefect's automations: a POST to a webhook when a flow run fails, when a run collapses, when none takes it.

python -m lightning_flows.flows.automations https://hooks.example.org/alerts     (with PREFECT_API_URL; a second call replaces the first's)
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import cast

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture

_BLOCK = "lightning-flows-alerts"
_TAG = {"prefect.resource.id": "prefect.tag.lightning-flows", "prefect.resource.role": "tag"}
_COLLAPSED = "Flow run encountered an exception: Collapse*"  # as Prefect words what tasks/alarm.py raises
_BODY = "{{ flow_run.name }} of {{ flow.name }}: {{ flow_run.state.message }}"


def create(webhook: str) -> list[str]:
    """Create or replace the automations; returns their names."""
    block = CustomWebhookNotificationBlock(
        name=_BLOCK, url=webhook, method="POST", json_data={"subject": "{{subject}}", "text": "{{body}}"}
    )
    block_id = block.save(_BLOCK, overwrite=True)
    made = []
    ended: set[str] = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    for name, expect, match, subject in (
        ("lightning-flows failure", ended, {}, "a flow run failed"),
        ("lightning-flows collapse", ended, {"prefect.state-message": _COLLAPSED}, "a run collapsed and was stopped"),
        ("lightning-flows waiting", {"prefect.flow-run.Late"}, {}, "a flow run waits: does a worker of its pool run?"),
    ):
        trigger = EventTrigger(
            expect=expect,
            match={"prefect.resource.id": "prefect.flow-run.*", **match},
            match_related=_TAG,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        )
        action = SendNotification(block_document_id=block_id, subject=subject, body=_BODY)
        _remove(name)
        Automation(name=name, trigger=trigger, actions=[action], enabled=True).create()
        made.append(name)
    return made


def _remove(name: str) -> None:
    try:
        found = cast(Automation, Automation.read(name=name))
    except ValueError:  # there is none
        return
    found.delete()


if __name__ == "__main__":
    create(sys.argv[1])

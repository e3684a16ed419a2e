"""Where rollouts, decoding and SQL run."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from lightning_core.config.section import Section


def loopback(url: str) -> bool:
    """Return whether only this machine reaches a server by that address."""
    host = urlsplit(url if "//" in url else f"//{url}").hostname or url  # of a bare IPv6 address it finds no host
    return host in ("localhost", "::1", "::", "0.0.0.0", "auto", "") or host.startswith("127.")


class ClusterSettings(Section):
    """An engine that spreads rollouts, decoding and SQL over processes and machines; docs/scale.md."""

    engine: Literal["threads", "ray", "dask"] = Field(
        "threads", description="`ray` and `dask` need `pip install 'lightning-flows[scale]'`"
    )
    address: str | None = Field(
        None,
        description="address of a running cluster: `ray://head:10001`, `tcp://scheduler:8786`; null: a cluster is started on this machine",
    )
    workers: int | None = Field(
        None, ge=1, description="number of processes of the cluster that is started on this machine; null: one a core"
    )

    @property
    def elsewhere(self) -> bool:
        """Return whether its workers are on other machines."""
        return self.address is not None and not loopback(self.address)

    @model_validator(mode="after")
    def _one_cluster(self) -> ClusterSettings:
        if self.engine == "threads" and (self.address is not None or self.workers is not None):
            raise ValueError(
                "`engine: threads` has no address and no workers; set `engine: ray` or `engine: dask`, or leave both out"
            )
        if self.address is not None and self.workers is not None:
            raise ValueError("the cluster at `address` has its own workers; leave `workers` out")
        return self

"""`python -m lightning_core.client`: sends the spans that wait for the gateway of `OTEL_EXPORTER_OTLP_ENDPOINT`.

For agents that run by themselves and died before they could: those of an attempt are sent by its runner. Credentials are
those of `OTEL_EXPORTER_OTLP_HEADERS`. Ends with 1 where the gateway did not take them.
"""

from __future__ import annotations

import sys

from lightning_core.client.delivery import DeliveryError
from lightning_core.client.emit import send_waiting

if __name__ == "__main__":
    try:
        sys.stdout.write(f"sent {send_waiting()} requests\n")
    except (DeliveryError, OSError) as error:
        sys.exit(f"not all waiting spans were sent: {error}")

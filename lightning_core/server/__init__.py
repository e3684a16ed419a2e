"""The one door: OpenAI API in front of vLLM, OTLP receiver, spool; one process, one port.

    python -m lightning_core.server --home var --port 8080

`main` starts it, `handle` is what flows hold, `app` puts the parts together.
"""

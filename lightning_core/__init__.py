"""The library under the flows. It imports no Prefect."""

"""From OTLP spans to tables: decoding, Parquet behind manifests, the catalog, and asking it.

Decoding the spool:
    otlp.py           bodies to protobuf               otlp_envelope.py  where spans begin and end
    otlp_json.py      OTLP/JSON to protobuf            decode.py         spool → typed rows
    located.py        where each span lies             wire.py           protobuf without a schema
    attributes.py     attributes as one table          any_value.py      OTLP's AnyValue
    pivot.py          attributes → columns             span_columns.py   spans → columns
    scopes.py         resources and scopes             texts.py          columns of text
    number_arrays.py  token ids and logprobs           number_facts.py   counts and bounds of them
    memory.py         memory that is used again        redact.py         texts that are not kept
    retries.py        spans that were sent again

Files:
    lake.py      one home's lake              schema.py    the columns of `spans`
    parquet.py   how rows lie on disk         manifest.py  which files make a table
    compact.py   small files → large ones     retain.py    how long what is kept
    storage.py   the lake on object storage   sql.py       the files of `sql/`, in order
    derived_tables.py  the tables of an epoch       unique_places.py  one place a span

Asking:
    catalog.py       `catalog.duckdb`                ask.py           questions, by name or SQL
    text_table.py    rows as text                    explain.py       why a rollout was trained on
    explain_view.py  the same, for a terminal
"""

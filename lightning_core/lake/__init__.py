"""From OTLP spans to tables: decoding, Parquet behind manifests, the catalog, and asking it.

Decoding the spool:
    decode.py    spool → typed rows               number_facts.py  counts and bounds of token ids
    retries.py   spans that were sent again       redact.py        texts that are not kept

Files:
    lake.py      one home's lake              schema.py    the columns of `spans`
    parquet.py   how rows lie on disk         manifest.py  which files make a table
    compact.py   small files → large ones     retain.py    how long what is kept
    storage.py   the lake on object storage   sql.py       the files of `sql/`, in order
    derived_tables.py  the tables of an epoch       unique_places.py  one place a span
    verify.py    files are what was written   repair.py   what is not, put right or away
    rebuild.py   a manifest from the files    migrate.py  an older home to today's format

Asking:
    catalog.py       `catalog.duckdb`                ask.py           questions, by name or SQL
    text_table.py    rows as text                    explain.py       why a rollout was trained on
    explain_view.py  the same, for a terminal        user_sql.py      SQL of a user: it only reads, and ends
    why.py           what is wrong with a run        held.py          views that are computed once
    conversation.py  messages of a call as text
"""

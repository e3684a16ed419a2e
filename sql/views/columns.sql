-- The columns of every table and view, with type and meaning: the dictionary of the catalog.
-- Grain: one row per (table_name, column_name). Inputs: meanings, span_columns.
-- Rule: the meaning of the column in its table, else in any table, else that of the column of the same name in `spans`.
SELECT
    there.table_name,
    there.column_index AS position,
    there.column_name,
    there.data_type AS type,
    CASE WHEN there.table_name = 'spans' THEN of_spans.meaning ELSE coalesce(own.meaning, anywhere.meaning, of_spans.meaning) END AS meaning
FROM duckdb_columns() AS there
LEFT JOIN meanings AS own ON own.of_table = there.table_name AND own.column_name = there.column_name
LEFT JOIN meanings AS anywhere ON anywhere.of_table IS NULL AND anywhere.column_name = there.column_name
LEFT JOIN span_columns AS of_spans ON of_spans.column_name = there.column_name
WHERE there.schema_name = 'main' AND there.database_name = current_database() AND NOT there.internal
ORDER BY there.table_name, there.column_index

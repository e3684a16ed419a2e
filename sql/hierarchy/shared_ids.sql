-- Response ids of several records with token ids of equal lengths: one call that was recorded twice, or a mock that gives every call the
-- same id.
-- Grain: one row per such record. Inputs: nodes, repeated_responses.
-- A table of its own, so that DuckDB knows how few there are (normally none) before `llm_twins` reads token ids for them.
SELECT node, record_offset, record_index
FROM nodes
SEMI JOIN repeated_responses USING (response_key)
WHERE op = 'llm' AND prompt_tokens IS NOT NULL AND response_tokens IS NOT NULL
QUALIFY count(*) OVER (PARTITION BY response_key, prompt_tokens, response_tokens) > 1

-- Response ids that several LLM spans of an attempt bear: as a rule none.
-- Grain: one row per (attempt, response id), by `response_key`. Inputs: nodes.
SELECT hash(attempt, response_id) AS response_key
FROM nodes
WHERE op = 'llm' AND response_id IS NOT NULL
GROUP BY ALL
HAVING count(*) > 1

-- Response ids that several LLM spans of an attempt have; normally there are none.
-- Grain: one row per (attempt, response id), by `response_key`. Inputs: nodes.
SELECT response_key
FROM nodes
WHERE op = 'llm' AND response_key IS NOT NULL
GROUP BY response_key
HAVING count(*) > 1

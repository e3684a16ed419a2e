-- What a call's prompt tells of its agent: its leading system messages and the names of its tools.
-- Grain: one row per call (twins merged) that has either, in attempts in which spans wait for a place. Calls with equal prompts have the
-- same `prompt_key`.
-- Inputs: call_prompts.
-- Rule: numbers, dates and ids in the messages count as equal. If the prompts that remain begin alike and hardly ever repeat in the
-- attempt, as with retrieved text, only their first hundred characters and the rest of that line count.
WITH texts AS (
    SELECT
        node,
        attempt,
        regexp_replace(system, '\b[0-9a-fA-F:.-]*[0-9][0-9a-fA-F:.-]*\b', '#', 'g') AS text,
        tools
    FROM call_prompts
),
keys AS (
    SELECT
        node,
        attempt,
        hash(text, tools) AS whole,
        hash(regexp_extract(text, '^(?s:.{0,100})[^\n]*'), tools) AS opening
    FROM texts
    WHERE text <> '' OR len(tools) > 0
)
SELECT
    node,
    attempt,
    whole,
    opening,
    CASE WHEN 2 * count(DISTINCT whole) OVER alike <= count(*) OVER alike OR count(DISTINCT whole) OVER alike = 1
        THEN whole ELSE opening END AS prompt_key
FROM keys
WINDOW alike AS (PARTITION BY attempt, opening)

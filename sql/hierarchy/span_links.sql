-- Spans without a parent that link to one other span of the attempt (messages between agents, as AutoGen sends them).
-- Grain: one row per such span; `parent` is the span linked to. Inputs: nodes, declared.
WITH links AS (
    SELECT node, attempt, unnest(json_extract_string(links, '$[*].span_id')) AS span_id
    FROM nodes
    ANTI JOIN declared USING (node)
    WHERE links IS NOT NULL AND op <> 'rollout'
)
SELECT links.node, min(target.node) AS parent
FROM links
JOIN nodes AS target ON target.attempt = links.attempt AND target.span_id = links.span_id AND target.node <> links.node
GROUP BY links.node
HAVING count(DISTINCT target.node) = 1

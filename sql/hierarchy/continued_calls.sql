-- Whose conversation a call goes on with: its prompt repeats an earlier call's messages and its reply.
-- Grain: one row per such call of an attempt in which spans wait for a place; `earlier` is that call, `opening` the first of the
-- conversation. Inputs: call_prompts.
-- Rule: the same messages up to the last reply among them, hence the same leading system messages, and the same tools. Where several
-- calls said the same, none.
WITH RECURSIVE
replies AS MATERIALIZED (
    SELECT attempt, said, min(node) AS node, min(start_ns) AS start_ns
    FROM (SELECT attempt, node, start_ns, unnest(replies) AS said FROM call_prompts WHERE replies IS NOT NULL)
    GROUP BY attempt, said
    HAVING count(DISTINCT node) = 1
),
continued AS MATERIALIZED (
    SELECT call_prompts.attempt, call_prompts.node, replies.node AS earlier
    FROM call_prompts
    JOIN replies USING (attempt, said)
    WHERE replies.node <> call_prompts.node AND replies.start_ns < call_prompts.start_ns
),
openings AS (
    SELECT node, earlier, earlier AS opening FROM continued ANTI JOIN (SELECT node AS earlier FROM continued) AS later USING (earlier)
    UNION ALL
    SELECT continued.node, continued.earlier, openings.opening
    FROM openings
    JOIN continued ON continued.earlier = openings.node
)
SELECT continued.attempt, openings.* FROM openings JOIN continued USING (node)

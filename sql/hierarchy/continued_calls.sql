-- Which conversation a call continues: its prompt repeats an earlier call's messages and its reply.
-- Grain: one row per such call, in attempts in which spans wait for a place. `earlier` is the earlier call, `opening` the first call of
-- the conversation.
-- Inputs: call_prompts.
-- Rule: both calls have the same tools and the same messages up to the last reply (so also the same leading system messages). If
-- several earlier calls have the same messages and reply, there is no row.
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

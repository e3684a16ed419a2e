-- Every reward of the attempts that count, and why some of them do not count.
-- Grain: one row per reward. `source`: emitted (by the agent), grader, air (a rule), failure (of the attempt).
-- `agent`: the agent under whose span it was emitted; NULL outside every agent. `counts`: it is part of the rollout's reward.
-- Inputs: nodes, span_agents, spans, scored_attempts, bucket, air_matches, reward_settings, reward_weights (name, weight).
-- Rule: with weights, the last reward of each weighted name counts; without, the last one named `reward`, or the last of any name if none is.
-- A grader's reward, written after the attempt, is later than any other, whatever the clocks say.
-- `no_authority`: an attempt gave it in a grader's name. `grader_failed`: the settings' grader gave this attempt no number; then the agent's own
-- reward does not replace it, because an agent may make a grader fail.
-- A failed attempt gets failure_reward instead of these. Rewards of rules (AIR) are added in both cases.
WITH graders AS (
    SELECT nodes.node, spans.attributes['lightning.reward.grader'] AS grader
    FROM nodes
    JOIN spans USING (record_offset, record_index)
    WHERE nodes.reward_source = 'grader'
),
attempts AS (
    -- By `attempt`: one number is joined faster than two texts.
    SELECT bucket.attempt, scored_attempts.* FROM scored_attempts JOIN bucket USING (rollout_id, attempt_id)
),
emitted AS (
    SELECT
        nodes.attempt,
        attempts.rollout_id,
        attempts.attempt_id,
        nodes.node,
        nodes.span_id,
        CASE WHEN nodes.reward_source IS DISTINCT FROM 'grader' THEN tree.agent END AS agent,
        tree.ambiguous AND nodes.reward_source IS DISTINCT FROM 'grader' AS ambiguous,
        coalesce(nodes.reward_name, 'reward') AS name,
        CASE WHEN nodes.reward_source = 'grader' THEN 'grader' ELSE 'emitted' END AS source,
        nodes.reward AS value,
        coalesce(nodes.end_ns, nodes.start_ns) AS emitted_ns,
        attempts.outcome,
        CASE
            WHEN nodes.reward_source = 'grader' AND coalesce(graders.grader, '') <> settings.grader THEN 'former_grader'
            WHEN nodes.reward_source = 'refused' THEN 'no_authority'
            WHEN nodes.reward IS NULL THEN 'no_number'
            WHEN NOT isfinite(nodes.reward) THEN 'not_finite'
            WHEN attempts.outcome <> 'ok' THEN 'failed_attempt'
            WHEN settings.reward_match IS NOT NULL AND NOT regexp_matches(coalesce(tree.agent, ''), settings.reward_match) THEN 'reward_match'
            WHEN settings.weighted AND weights.name IS NULL THEN 'no_weight'
        END AS left_out,
        coalesce(weights.weight, 1.0) AS weight,
        settings.weighted
    FROM nodes
    JOIN span_agents AS tree USING (node)
    JOIN attempts ON attempts.attempt = nodes.attempt
    CROSS JOIN reward_settings AS settings
    LEFT JOIN reward_weights AS weights ON weights.name = coalesce(nodes.reward_name, 'reward')
    LEFT JOIN graders ON graders.node = nodes.node
    WHERE nodes.op = 'reward' OR nodes.reward IS NOT NULL
),
usable AS (
    SELECT
        emitted.* REPLACE (
            CASE
                WHEN emitted.left_out IS NULL AND emitted.source = 'emitted' AND ungraded.attempt IS NOT NULL THEN 'grader_failed'
                ELSE emitted.left_out
            END AS left_out
        )
    FROM emitted
    LEFT JOIN (
        SELECT DISTINCT attempt FROM emitted WHERE source = 'grader' AND left_out IN ('no_number', 'not_finite')
    ) AS ungraded USING (attempt)
),
plain AS (
    -- Attempts with a usable reward named `reward`: it alone counts, unless there are weights.
    SELECT DISTINCT attempt FROM usable WHERE left_out IS NULL AND NOT weighted AND name = 'reward'
),
named AS (
    SELECT
        usable.* REPLACE (
            CASE
                WHEN usable.left_out IS NULL AND usable.name <> 'reward' AND plain.attempt IS NOT NULL THEN 'other_name'
                ELSE usable.left_out
            END AS left_out
        )
    FROM usable
    LEFT JOIN plain USING (attempt)
),
last_ones AS (
    -- What has no time is earlier than what has one.
    SELECT max_by(node, (source = 'grader', coalesce(emitted_ns, -never_ns()), node)) AS node
    FROM named
    WHERE left_out IS NULL
    GROUP BY attempt, CASE WHEN weighted THEN name END
),
lasting AS (
    SELECT named.*, last_ones.node IS NOT NULL AS counts FROM named LEFT JOIN last_ones USING (node)
),
by_rules AS (
    SELECT air.*, nodes.span_id, tree.agent, tree.ambiguous
    FROM air_matches AS air
    JOIN nodes USING (node)
    JOIN span_agents AS tree USING (node)
),
failed AS (
    SELECT attempts.rollout_id, attempts.attempt_id, attempts.end_ns, settings.failure_reward, min(nodes.node) AS node, min_by(nodes.span_id, nodes.node) AS span_id
    FROM attempts
    CROSS JOIN reward_settings AS settings
    LEFT JOIN nodes ON nodes.attempt = attempts.attempt AND nodes.op = 'rollout'
    WHERE attempts.outcome <> 'ok' AND settings.failure_reward IS NOT NULL
    GROUP BY ALL
)
SELECT rollout_id, attempt_id, node, span_id, agent, ambiguous, name, source, value, weight, emitted_ns, counts, left_out
FROM lasting
UNION ALL
SELECT rollout_id, attempt_id, node, span_id, agent, ambiguous, name, 'air', given, 1.0, emitted_ns, true, NULL
FROM by_rules
UNION ALL
SELECT rollout_id, attempt_id, node, span_id, NULL, false, 'failure_reward', 'failure', failure_reward, 1.0, end_ns, true, NULL
FROM failed
ORDER BY rollout_id, attempt_id, emitted_ns, node, source, name

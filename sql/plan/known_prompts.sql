-- Prompts by which the run knows an agent: its next epoch takes them for certain.
-- Grain: one row per prompt. Input: agent_prompts, of earlier epochs of the run.
-- Rule: the prompt was in at least three rollouts, in nine of ten of them of the same agent. If ids tell the agents of three rollouts, only these
-- count.
WITH rollouts AS (
    SELECT
        prompt_key,
        agent,
        count(DISTINCT rollout_id) AS rollouts,
        count(DISTINCT rollout_id) FILTER (by_ids) AS by_ids
    FROM agent_prompts
    GROUP BY ALL
),
counted AS (
    SELECT
        prompt_key,
        agent,
        CASE WHEN sum(by_ids) OVER (PARTITION BY prompt_key) >= 3 THEN by_ids ELSE rollouts END AS rollouts
    FROM rollouts
)
SELECT prompt_key, max_by(agent, (rollouts, agent)) AS agent
FROM counted
GROUP BY prompt_key
HAVING sum(rollouts) >= 3 AND max(rollouts) >= 0.9 * sum(rollouts)
ORDER BY prompt_key

-- Whose calls came with which prompt: what later epochs of the run may know an agent by.
-- Grain: one row per (attempt, prompt, agent). `by_ids`: ids alone tell whose these calls were. A prompt counts twice, whole and
-- by how it begins, since attempts differ in which of them tells agents apart (`prompt_keys`).
-- Inputs: prompt_keys, span_agents, components, evident_agent, bucket.
-- Rule: what was concluded from prompts is no evidence of prompts.
WITH calls AS (
    SELECT
        prompt_keys.attempt,
        prompt_keys.node,
        unnest(list_distinct([prompt_keys.whole, prompt_keys.opening])) AS prompt_key,
        span_agents.agent,
        components.agent_node IS NOT NULL AS by_ids
    FROM prompt_keys
    JOIN components USING (node)
    JOIN span_agents USING (node)
    LEFT JOIN evident_agent ON evident_agent.node = components.top
    WHERE span_agents.agent IS NOT NULL
        AND (components.agent_node IS NOT NULL OR coalesce(evident_agent.method <> 'content', true))
)
SELECT bucket.rollout_id, bucket.attempt_id, prompt_key, agent, by_ids, count(*) AS calls
FROM calls
JOIN bucket USING (attempt)
GROUP BY ALL
ORDER BY ALL

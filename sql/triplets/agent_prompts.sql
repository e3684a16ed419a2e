-- Which agent's calls had which prompt: later epochs of the run may recognize an agent by it.
-- Grain: one row per (attempt, prompt, agent). `by_ids`: ids alone tell the agent of these calls. A prompt counts twice, as a whole and by
-- its beginning, since attempts differ in which of the two tells agents apart (`prompt_keys`).
-- Inputs: prompt_keys, span_agents, components, evident_agent, bucket.
-- Rule: agents that were concluded from prompts do not count as evidence of prompts.
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

-- The agents of each prompt, as far as ids tell them.
-- Grain: one row per (attempt, prompt, agent name), from calls that lie under an agent, or name it, by ids alone; several agents may share
-- a prompt. Inputs: prompt_keys, components, agent_spans.
SELECT DISTINCT prompt_keys.attempt, prompt_keys.prompt_key, agent_spans.agent
FROM prompt_keys
JOIN components USING (node)
JOIN agent_spans ON agent_spans.node = components.agent_node

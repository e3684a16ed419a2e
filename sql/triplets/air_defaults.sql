-- The rules that `reward.air: default` applies; a list of rules in the settings replaces them.
-- Grain: one row per rule. Inputs: none; this file is the table.
-- Rule: they punish what any agent should avoid, lightly against a reward of 1: a tool that fails, an agent that raises, a reply that ran into
-- its limit of tokens.
SELECT * FROM (VALUES
    ('failed_tool',     -0.1,  'tool',  NULL, 'error', NULL,             NULL,       'match',   0.5,  NULL),
    ('failed_agent',    -0.1,  'agent', NULL, 'error', NULL,             NULL,       'rollout', NULL, NULL),
    ('truncated_reply', -0.05, 'llm',   NULL, NULL,    'finish_reasons', '"length"', 'match',   0.2,  NULL)
) AS rules (name, value, op, tool, status, attribute, pattern, per, cap, before_limit)

-- Settings that should have matched something in the epoch and matched nothing: they are probably misspelt.
-- Grain: one row per such setting; for `reward.assign` one per agent whose rewards all went to no call, because no policy answers its calls.
-- Inputs: rewards_given, reward_steps, policy_calls, air_rules, reward_weights, policy_weights, reward_settings, policies, user_rules,
-- rule_matches.
SELECT 'reward.air' AS setting, name AS given, 'no span matched this rule' AS meaning
FROM air_rules
WHERE name NOT IN (SELECT name FROM rewards_given WHERE source = 'air')
UNION ALL
SELECT 'reward.weights', name, 'no reward has this name'
FROM reward_weights
WHERE name NOT IN (SELECT name FROM rewards_given WHERE source IN ('emitted', 'grader'))
UNION ALL
SELECT 'policies.' || policy || '.rewards', name, 'no reward has this name'
FROM policy_weights
WHERE name NOT IN (SELECT name FROM rewards_given WHERE source IN ('emitted', 'grader'))
UNION ALL
SELECT 'reward.reward_match', reward_match, 'no reward was emitted under such an agent'
FROM reward_settings
WHERE reward_match IS NOT NULL
    AND EXISTS (FROM rewards_given WHERE left_out = 'reward_match')
    AND NOT EXISTS (FROM rewards_given WHERE left_out IS NULL AND source IN ('emitted', 'grader'))
UNION ALL
SELECT
    'reward.assign',
    any_value(reward_settings.assign),
    format(
        'no policy answers a call of agent {}, so its {} rewards go to no call; emit them outside every agent, or take final',
        given.agent, count(DISTINCT given.node)
    )
FROM reward_steps AS steps
JOIN rewards_given AS given USING (node, source, name)
CROSS JOIN reward_settings
WHERE given.agent IS NOT NULL
GROUP BY given.agent
HAVING bool_and(steps.left_out IS NOT DISTINCT FROM 'no_call_of_agent')
UNION ALL
SELECT
    'policies.' || policy || '.agent_match',
    agent_match,
    'the policy was called, and never by such an agent; it was by: ' || (
        SELECT string_agg(agent, ', ' ORDER BY agent)
        FROM (SELECT DISTINCT coalesce(calls.agent, '(no name)') AS agent FROM policy_calls AS calls WHERE calls.policy = policies.policy)
    )
FROM policies
WHERE agent_match <> ''
    AND policy IN (SELECT policy FROM policy_calls WHERE policy IS NOT NULL)
    AND policy NOT IN (SELECT policy FROM policy_calls WHERE policy IS NOT NULL AND (left_out IS NULL OR regexp_matches(coalesce(agent, ''), policies.agent_match)))
UNION ALL
SELECT 'policies.' || policy || '.agent_exclude', agent_exclude, 'no call was excluded by it'
FROM policies
WHERE agent_exclude IS NOT NULL
    AND policy IN (SELECT policy FROM policy_calls WHERE policy IS NOT NULL)
    AND policy NOT IN (SELECT policy FROM policy_calls WHERE left_out = 'agent_excluded')
UNION ALL
SELECT 'agent_rules.' || rank, coalesce(key, source), 'no span has an agent''s name there'
FROM user_rules
WHERE rank NOT IN (SELECT rank FROM rule_matches)
ORDER BY ALL

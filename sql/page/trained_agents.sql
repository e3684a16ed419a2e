-- The agents whose calls the policies of a run were really trained on, beside the pattern that selects them.
-- Grain: one row per (policy, agent); without an agent: none of the policy's calls was trained on yet. Parameters: run.
-- Inputs: trained_calls, stored.policy_calls, epoch_manifests, run_settings.
-- Rule: `agent_match`, with its key `setting`, is that of the newest epoch, a pattern that is searched in the agent's name; NULL: the default, which
-- matches every agent.
WITH trained AS (
    SELECT calls.policy, calls.agent, count(*) AS calls
    FROM trained_calls AS trained
    JOIN stored.policy_calls AS calls ON calls.run = trained.run AND call_id_of(calls.run, calls.epoch, calls.call_id) = trained.call_id
    WHERE trained.run = $run
    GROUP BY ALL
),
policies AS (
    SELECT DISTINCT unnest(map_keys(versions)) AS policy FROM epoch_manifests WHERE run = $run AND mode = 'train'
    UNION
    SELECT policy FROM trained
),
given AS (
    SELECT
        coalesce(any_value(given) FILTER (ends_with(setting, '.name')), 'policy') AS policy,
        any_value(setting) FILTER (ends_with(setting, '.agent_match')) AS setting,
        any_value(given) FILTER (ends_with(setting, '.agent_match')) AS agent_match
    FROM run_settings
    WHERE run = $run AND regexp_matches(setting, '^policies\.\d+\.(name|agent_match)$')
    GROUP BY split_part(setting, '.', 2)
)
SELECT policies.policy, given.setting, given.agent_match, trained.agent, trained.calls
FROM policies
LEFT JOIN trained USING (policy)
LEFT JOIN given USING (policy)
ORDER BY policies.policy, trained.calls DESC, trained.agent

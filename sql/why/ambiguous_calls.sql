-- Calls that several agents could have made; they train nothing where it matters whose they are.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: policy_calls, calls.
-- Rule: a call is certain if the span that the LLM client recorded lies in its agent's span. `seen`: the rollouts in which any
-- instrumentation recorded calls.
-- Remedy: Instrument the LLM client in the agent's process (openinference-instrumentation-openai, or what docs/frameworks.md names for the framework), and hand the context to the threads that call; `policies[].ambiguous: train` where every one of these agents is trained.
-- Evidence: SELECT epoch, policy, call_id, rollout_id, method, candidate_agents FROM policy_calls WHERE run = $run AND ambiguous
WITH limits AS (
    SELECT 0.05 AS many, 0.5 AS most
),
seen AS (
    SELECT DISTINCT rollout_id, attempt_id, true AS instrumented FROM calls WHERE run = $run AND recorded_by = 'instrumentation'
),
counted AS (
    SELECT
        calls.epoch,
        calls.policy,
        count(*) AS calls,
        count(*) FILTER (ambiguous) AS ambiguous,
        count(*) FILTER (ambiguous AND seen.instrumented IS NULL) AS unseen,
        list_sort(list_distinct(flatten(list(candidate_agents) FILTER (ambiguous)))) AS agents
    FROM policy_calls AS calls
    LEFT JOIN seen USING (rollout_id, attempt_id)
    WHERE run = $run
    GROUP BY ALL
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    CASE WHEN ambiguous > most * calls THEN 'error' WHEN ambiguous > many * calls THEN 'warning' ELSE 'note' END AS severity,
    format(
        '{} of {} calls could be of several agents ({}); {}',
        ambiguous,
        calls,
        coalesce(array_to_string(agents, ', '), 'unknown'),
        CASE
            WHEN unseen = ambiguous THEN 'nothing but the gateway recorded a call of these rollouts: instrument the LLM client'
            ELSE format('of {} the LLM client recorded calls, outside their agents'' spans: hand on the context', ambiguous - unseen)
        END
    ) AS what
FROM counted
CROSS JOIN limits
WHERE ambiguous > 0

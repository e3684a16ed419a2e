-- What a trial of an agent left behind, counted for `lightning-flows doctor`.
-- Grain: one row. Inputs: spans, attempts, calls, rewards, policy_calls, refused_claims; $run: the trial's.
-- Rule: `calls` are those that the gateway answered; `refused` are those that it did not, as `model: reason`. Spans count if they are the agent's own:
-- not the gateway's, the runner's, or rewards. `asked_for`: the model names of calls that a policy answered. `elsewhere`: calls that only the agent's
-- instrumentation recorded.
WITH mine AS (
    SELECT spans.*
    FROM spans
    JOIN attempts USING (rollout_id, attempt_id)
    WHERE attempts.run = $run
),
answered AS (
    SELECT * FROM calls WHERE run = $run AND recorded_by = 'gateway' AND untrainable IS DISTINCT FROM 'refused'
),
own AS (
    SELECT * FROM mine
    WHERE op NOT IN ('rollout', 'rollout.start', 'reward') AND sender <> 'gateway'
),
of_calls AS (
    SELECT
        count(*) AS calls,
        count(*) FILTER (policy IS NULL) AS other_models,
        count(*) FILTER (untrainable IN ('missing_ids', 'missing_logprobs')) AS without_ids,
        count(*) FILTER (untrainable IS NOT NULL) AS untrainable,
        list_sort(list(DISTINCT untrainable) FILTER (untrainable IS NOT NULL)) AS untrainable_reasons,
        list_sort(list(DISTINCT model) FILTER (policy IS NOT NULL)) AS asked_for
    FROM answered
),
of_refusals AS (
    SELECT list_sort(list(DISTINCT coalesce(model, '?') || ': ' || coalesce(status_message, '?'))) AS refused
    FROM mine
    WHERE op = 'llm' AND untrainable = 'refused'
),
of_spans AS (
    SELECT
        count(*) AS spans,
        list_sort(list(DISTINCT agent_name) FILTER (agent_name IS NOT NULL)) AS agents,
        count(*) FILTER (dropped_attributes > 0) AS cut_spans,
        coalesce(sum(dropped_attributes), 0)::BIGINT AS dropped_attributes,
        count(*) FILTER (op = 'tool') AS tools,
        count(*) FILTER (op = 'tool' AND status = 'error') AS failed_tools
    FROM own
),
of_records AS (
    SELECT
        count(*) FILTER (twin_of IS NOT NULL) AS twins,
        count(*) FILTER (recorded_by = 'instrumentation' AND twin_of IS NULL) AS elsewhere
    FROM calls
    WHERE run = $run
),
of_rewards AS (
    SELECT count(*) FILTER (reward IS NOT NULL AND source <> 'refused') AS rewards, min(error) AS reward_error FROM rewards WHERE run = $run
),
of_claims AS (
    SELECT count(*) AS claims, list_sort(list(DISTINCT refused)) AS claimed FROM refused_claims WHERE run = $run
),
of_training AS (
    SELECT
        count(*) FILTER (left_out IS NULL OR left_out IN ('failed_attempt', 'no_reward')) AS matched,
        count(*) FILTER (left_out = 'ambiguous_agent') AS ambiguous,
        count(*) FILTER (agent IS NULL) AS nameless,
        list_sort(list(DISTINCT left_out) FILTER (left_out IS NOT NULL)) AS left_out
    FROM policy_calls
    WHERE run = $run
)
SELECT * FROM of_calls, of_refusals, of_spans, of_records, of_rewards, of_claims, of_training

-- Which LLM calls of the epoch's rollouts train a policy, and why the others do not: the few columns of `policy_calls` that rewards and triplets
-- need.
-- Grain: one row per call (twins merged). `left_out` is NULL if the call trains `policy`.
-- Inputs: nodes, span_agents, llm_twins, call_rows, agent_spans, candidate_agents, reward_operation_spans, sampled_calls, rollout_rewards,
-- policy_totals, bucket, policies, reward_settings.
-- Rule: a call trains the policy that sampled it, if it was sampled as that policy samples, and if the policy's agent_match matches the call's
-- agent. (A policy that `imitates` may also train on a call whose text it tokenized.) `left_out` is the first reason that holds:
-- `stale`: sampled by a version more than max_version_lag before the epoch's; `unknown_version`: there is a limit, and the version is not known.
-- `other_sampling`: other settings than the policy's temperature and top_p changed the distribution; for what the request left open
-- (`left_open`), the model's generation_config.json counts. The flag is also set on calls that train.
-- An ambiguous call trains if the policy takes every agent that could have made it, and all of them get the same reward (`assign: final`, or
-- `ambiguous: train`). `reward_operation`: a judge made the call.
-- `bad_token_ids`: negative, or past the vocabulary if that is known. `bad_logprobs`: above 0 by more than rounding, infinite, or NaN.
-- `not_scheduled`: the policy is not trained in this epoch.
-- A policy that `imitates` (sft) takes whole tokens however they were chosen, also greedily or by a grammar.
WITH calls AS (
    SELECT
        nodes.node,
        nodes.attempt,
        nodes.status,
        coalesce(nodes.policy, call_rows.policy) AS policy,
        nodes.policy_version,
        coalesce(call_rows.tokenized, false) AS tokenized,
        tree.agent,
        tree.ambiguous
    FROM nodes
    JOIN span_agents AS tree USING (node)
    ANTI JOIN llm_twins ON llm_twins.node = nodes.node
    LEFT JOIN call_rows ON call_rows.call_id = nodes.node
    WHERE nodes.op = 'llm'
),
rewards AS (
    -- By `attempt`: hundreds of thousands of calls are joined by one number, not by two texts.
    SELECT bucket.attempt, totals.left_out
    FROM rollout_rewards AS totals
    JOIN bucket USING (rollout_id, attempt_id)
),
remarked AS (
    -- Likewise, and fewer for the filter.
    SELECT call_id, sampling, untrainable, flaw
    FROM sampled_calls
    WHERE sampling IS NOT NULL OR untrainable IS NOT NULL OR flaw IS NOT NULL
),
-- Few texts on many calls: each is parsed, and each pattern searched, once.
samplings AS (
    SELECT
        text,
        TRY(from_json(
            text,
            '{"temperature": "DOUBLE", "top_p": "DOUBLE", "top_k": "DOUBLE", "min_p": "DOUBLE",
              "frequency_penalty": "DOUBLE", "presence_penalty": "DOUBLE", "repetition_penalty": "DOUBLE",
              "min_tokens": "DOUBLE", "logit_bias": "VARCHAR", "bad_words": "VARCHAR", "allowed_token_ids": "VARCHAR",
              "thinking_token_budget": "VARCHAR", "watermarking": "BOOLEAN", "vllm_xargs": "VARCHAR"}'
        )) AS sampling
    FROM (SELECT DISTINCT sampling AS text FROM sampled_calls WHERE sampling IS NOT NULL)
),
distorted AS (
    -- Any of these bends the distribution that the logprobs are of.
    SELECT
        text,
        policies.policy,
        abs(coalesce(sampling.temperature, left_open.temperature, policies.temperature) - policies.temperature) > 1e-6
            OR abs(coalesce(sampling.top_p, left_open.top_p, policies.top_p) - policies.top_p) > 1e-6
            OR coalesce(coalesce(sampling.top_k, left_open.top_k) > 0, false)
            OR coalesce(coalesce(sampling.min_p, left_open.min_p) > 0, false)
            OR coalesce(coalesce(sampling.frequency_penalty, left_open.frequency_penalty) <> 0, false)
            OR coalesce(coalesce(sampling.presence_penalty, left_open.presence_penalty) <> 0, false)
            OR coalesce(coalesce(sampling.repetition_penalty, left_open.repetition_penalty) <> 1, false)
            OR coalesce(sampling.min_tokens > 0, false)
            OR coalesce(sampling.logit_bias <> '{}', false)
            OR coalesce(sampling.bad_words <> '[]', false)
            OR coalesce(sampling.watermarking, false)
            OR coalesce(sampling.vllm_xargs <> '{}', false)
            OR sampling.thinking_token_budget IS NOT NULL
            OR sampling.allowed_token_ids IS NOT NULL AS other_sampling
    FROM samplings
    CROSS JOIN policies
),
chosen_otherwise AS (
    -- No sample of the policy, but all the tokens of the reply.
    SELECT unnest(['greedy', 'guided', 'forced_tool', 'prefilled', 'beam_search']) AS untrainable
),
versions AS (
    SELECT policy_version, list_min([TRY_CAST(v AS BIGINT) FOR v IN regexp_extract_all(policy_version, 'v(\d+)', 1)]) AS oldest
    FROM (SELECT DISTINCT policy_version FROM nodes SEMI JOIN policies USING (policy) WHERE policy_version IS NOT NULL)
),
agents AS (
    SELECT
        policies.policy,
        agent_names.agent,
        regexp_matches(agent_names.agent, policies.agent_match) AS matched,
        CASE WHEN policies.agent_exclude IS NULL THEN false ELSE regexp_matches(agent_names.agent, policies.agent_exclude) END AS excluded
    FROM (SELECT agent FROM agent_spans UNION SELECT '') AS agent_names
    CROSS JOIN policies
),
candidates AS (
    SELECT
        agents.policy,
        candidate_agents.call_id,
        bool_or(matched) AS matched,
        bool_or(matched AND NOT excluded) AS taken,
        bool_and(matched AND NOT excluded) AS all_taken
    FROM candidate_agents
    JOIN agents USING (agent)
    GROUP BY ALL
)
SELECT
    calls.node AS call_id,
    calls.attempt,
    calls.policy,
    coalesce(distorted.other_sampling, false) OR chosen_otherwise.untrainable IS NOT NULL AS other_sampling,
    CASE
        WHEN calls.status = 'error' THEN 'failed_call'
        WHEN policies.policy IS NULL THEN 'other_policy'
        WHEN sampled.untrainable IS NOT NULL AND chosen_otherwise.untrainable IS NULL THEN 'untrainable: ' || sampled.untrainable
        WHEN sampled.flaw IS NOT NULL THEN sampled.flaw
        WHEN distorted.other_sampling AND policies.other_sampling = 'drop' AND NOT policies.imitates THEN 'other_sampling'
        WHEN policies.max_version_lag IS NOT NULL AND NOT calls.tokenized AND (versions.oldest IS NULL OR policies.version IS NULL) THEN 'unknown_version'
        WHEN policies.version - versions.oldest > policies.max_version_lag THEN 'stale'
        WHEN reward_operation_spans.node IS NOT NULL THEN 'reward_operation'
        WHEN calls.ambiguous
            AND policies.ambiguous = 'drop'
            AND coalesce(candidates.taken, true)
            AND NOT (
                settings.assign = 'final'
                AND coalesce(candidates.all_taken, policies.agent_match = '' AND policies.agent_exclude IS NULL)
            ) THEN 'ambiguous_agent'
        WHEN candidates.taken AND NOT candidates.all_taken THEN 'ambiguous_agent'
        WHEN NOT coalesce(candidates.matched, agents.matched) THEN 'agent_not_matched'
        WHEN coalesce(NOT candidates.taken, agents.excluded) THEN 'agent_excluded'
        WHEN NOT policies.scheduled THEN 'not_scheduled'
        WHEN policies.own_rewards THEN own.left_out
        WHEN rewards.left_out IS NOT NULL THEN rewards.left_out
    END AS left_out
FROM calls
JOIN rewards USING (attempt)
CROSS JOIN reward_settings AS settings
LEFT JOIN policies ON policies.policy = calls.policy
LEFT JOIN reward_operation_spans ON reward_operation_spans.node = calls.node
LEFT JOIN policy_totals AS own ON own.policy = calls.policy AND own.attempt = calls.attempt
LEFT JOIN remarked AS sampled ON sampled.call_id = calls.node
LEFT JOIN chosen_otherwise ON chosen_otherwise.untrainable = sampled.untrainable AND policies.imitates
LEFT JOIN distorted ON distorted.text = sampled.sampling AND distorted.policy = calls.policy
LEFT JOIN versions ON versions.policy_version = calls.policy_version
LEFT JOIN agents ON agents.policy = calls.policy AND agents.agent = coalesce(calls.agent, '')
LEFT JOIN candidates ON candidates.policy = calls.policy AND candidates.call_id = calls.node

-- What every call of the training rollouts said and got: (prompt, response, reward), and whether it was trained on or why not.
-- Grain: one row per (call_id, choice); one choice unless the agent asked for `n` > 1.
-- Inputs: stored.policy_calls, stored.merges, stored.exclusions, stored.call_returns, stored.advantages, call_advantages, epoch_manifests,
-- spans.
-- Rule: `reward` is the rollout's reward for this policy; `return` is what the call is credited with; `advantage` is what its tokens are trained with
-- (the mean, if each token has its own). `left_out` is NULL if it is in a sequence; `trained`: a version was trained on that. Tokens and messages
-- are those of the gateway's record; `choice` is 0 for a call without ids.
WITH choices AS (
    SELECT run, epoch, rollout_id, call_id, choice FROM stored.merges
    UNION
    SELECT run, epoch, rollout_id, call_id, choice FROM stored.exclusions
)
SELECT
    calls.run,
    calls.epoch,
    calls.rollout_id,
    calls.attempt_id,
    calls.group_id,
    call_id_of(calls.run, calls.epoch, calls.call_id) AS call_id,
    choices.choice,
    calls.agent,
    calls.agent_path,
    calls.policy,
    calls.policy_version,
    spans.prompt_ids,
    of_choice(spans.response_ids, spans.choice_lengths, choices.choice) AS response_ids,
    of_choice(spans.response_logprobs, spans.choice_lengths, choices.choice) AS response_logprobs,
    spans.input_messages,
    CASE
        WHEN len(spans.choice_lengths) > 1
            THEN json_array(json_extract(spans.output_messages, '$[' || choices.choice || ']'))::VARCHAR
        ELSE spans.output_messages
    END AS output_messages,
    returns.reward,
    returns.return,
    coalesce(of_tokens.advantage, advantages.advantage) AS advantage,
    calls.rollout_id || '/' || calls.attempt_id || '/' || merges.sequence_id AS sequence_id,
    merges.place,
    excluded.reason IS NULL AND manifests.trained[calls.policy] IS NOT NULL AS trained,
    excluded.reason AS left_out
FROM stored.policy_calls AS calls
JOIN choices
    ON choices.run = calls.run
    AND choices.epoch = calls.epoch
    AND choices.rollout_id = calls.rollout_id
    AND choices.call_id = calls.call_id
LEFT JOIN stored.merges AS merges
    ON merges.run = calls.run
    AND merges.epoch = calls.epoch
    AND merges.rollout_id = calls.rollout_id
    AND merges.call_id = calls.call_id
    AND merges.choice = choices.choice
LEFT JOIN stored.exclusions AS excluded
    ON excluded.run = calls.run
    AND excluded.epoch = calls.epoch
    AND excluded.rollout_id = calls.rollout_id
    AND excluded.call_id = calls.call_id
    AND excluded.choice = choices.choice
LEFT JOIN stored.call_returns AS returns
    ON returns.run = calls.run
    AND returns.epoch = calls.epoch
    AND returns.rollout_id = calls.rollout_id
    AND returns.call_id = calls.call_id
LEFT JOIN stored.advantages AS advantages
    ON advantages.run = calls.run
    AND advantages.epoch = calls.epoch
    AND advantages.policy = returns.policy
    AND advantages.rollout_id = calls.rollout_id
    AND advantages.attempt_id = calls.attempt_id
    AND advantages.agent = returns.agent
    AND advantages.step = returns.step
LEFT JOIN call_advantages AS of_tokens
    ON of_tokens.run = calls.run
    AND of_tokens.epoch = calls.epoch
    AND of_tokens.rollout_id = calls.rollout_id
    AND of_tokens.call_id = call_id_of(calls.run, calls.epoch, calls.call_id)
    AND of_tokens.choice = choices.choice
LEFT JOIN epoch_manifests AS manifests
    ON manifests.run = calls.run AND manifests.epoch = calls.epoch AND manifests.mode = 'train'
LEFT JOIN spans
    ON spans.rollout_id = calls.rollout_id
    AND spans.attempt_id = calls.attempt_id
    AND spans.span_id = calls.span_id
    AND spans.start_ns IS NOT DISTINCT FROM calls.start_ns
    AND spans.response_id IS NOT DISTINCT FROM calls.response_id
    AND spans.op = 'llm'

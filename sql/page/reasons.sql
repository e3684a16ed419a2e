-- The meaning of each reason for which a call trains nothing, with the run's own limit if there is one.
-- Grain: one row per reason. Parameters: run. Inputs: run_settings.
-- Rule: `limit` is that of the run's settings, for several policies each; NULL: the default, or the reason has none. docs/credit.md has the same list.
WITH meanings (reason, meaning, setting) AS (
    VALUES
    ('superseded', 'an earlier execution of the rollout counts', NULL),
    ('infrastructure', 'the infrastructure broke this execution, not the agent', NULL),
    ('unfinished', 'this execution never ended: its last record, the root span, is missing', NULL),
    ('no_outcome', 'its root span does not say how it ended', NULL),
    ('no_attempt', 'its spans do not say to which execution of the rollout they belong', NULL),
    ('failed_call', 'the call has no reply', NULL),
    ('other_policy', 'another model answered it than the policies that are trained: a frozen one, or one that runs elsewhere; sft can take its text', NULL),
    ('untrainable', 'the policy did not choose its tokens freely, as the gateway noted that passed the call on', NULL),
    ('no_token_ids', 'token ids or logprobs are missing, or do not fit each other', NULL),
    ('no_messages', 'it came without token ids, and what was said was not recorded, or is more than text', NULL),
    ('no_template', 'it came without token ids, and the policy''s chat template does not take its messages', NULL),
    ('empty_response', 'nothing was sampled', NULL),
    ('bad_token_ids', 'token ids are negative, or past the vocabulary', NULL),
    ('bad_logprobs', 'logprobs are above 0 or not finite', NULL),
    ('other_sampling', 'temperature or top_p are not the policy''s, or a penalty bent the distribution', 'other_sampling'),
    ('stale', 'it was sampled by a version that is too old for the epoch', 'max_version_lag'),
    ('unknown_version', 'which version sampled it is not known', NULL),
    ('reward_operation', 'a judge made it, to give a reward', NULL),
    ('ambiguous_agent', 'several agents could have made it', 'ambiguous'),
    ('agent_not_matched', 'agent_match does not take its agent', 'agent_match'),
    ('agent_excluded', 'agent_exclude takes its agent out', 'agent_exclude'),
    ('not_scheduled', 'the policy is not trained in this epoch', 'train_every'),
    ('failed_attempt', 'the rollout failed, and failed ones are left out', NULL),
    ('no_reward', 'there is no reward', NULL),
    ('ambiguous_reward', 'it is not known whose reward it is', NULL),
    ('no_group', 'its root span names no group', NULL),
    ('group_of_one', 'no other rollout of its group is left to compare it with', NULL),
    ('no_spread', 'every rollout of the group got the same return, so none is better than another', NULL),
    ('little_spread', 'the highest and the lowest return of the group differ by less than min_spread', 'min_spread'),
    ('below_min_reward', 'its reward is too low for an example', 'sft.min_reward'),
    ('not_best_of_group', 'another rollout of its group is the better example', 'sft.best'),
    ('no_advantage', 'the estimator, which makes advantages of rewards, gave none', NULL),
    ('advantage_not_finite', 'rewards are so large that the advantage is not finite', NULL),
    ('rollout_too_long', 'a sequence of the rollout is longer than training.max_sequence_tokens', 'training.max_sequence_tokens'),
    ('sequence_too_long', 'its sequence would be longer than training.max_sequence_tokens', 'training.max_sequence_tokens'),
    ('truncated', 'the reply was cut off at its limit of tokens', 'truncated')
),
limits AS (
    SELECT regexp_replace(setting, '^policies\.\d+\.', '') AS setting, string_agg(DISTINCT given, ', ' ORDER BY given) AS given
    FROM run_settings
    WHERE run = $run AND starts_with(setting, 'policies.')
    GROUP BY ALL
)
SELECT meanings.reason, meanings.meaning, limits.given AS "limit"
FROM meanings
LEFT JOIN limits ON limits.setting = meanings.setting
ORDER BY meanings.reason

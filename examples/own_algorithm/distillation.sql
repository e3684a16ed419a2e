-- The advantage of a token is how much likelier the teacher finds it than the policy. `reverse_kl`: their mean, with its sign changed.
-- Grain: one row per sequence; every list has one entry a trained token. Inputs: token_scores (`teacher`, `logprobs`).
SELECT
    sequence_id,
    [pair[1] - pair[2] FOR pair IN list_zip(teacher, logprobs)] AS advantages,
    (SELECT avg(own - its) FROM (SELECT unnest(logprobs) AS own, unnest(teacher) AS its FROM token_scores)) AS reverse_kl
FROM token_scores

-- (prompt ids, response ids, reward): what a policy can learn from.
-- Grain: one row per choice of a call that trains, as in triplet_rows.
-- Inputs: triplet_rows, spans, tokenized_calls.
-- Rule: `tokenized` calls were not sampled, so their logprobs are 0. A view: tokens are read from `spans` when they are needed.
SELECT
    this.call_id,
    this.choice,
    this.rollout_id,
    this.attempt_id,
    this.policy,
    this.policy_version,
    this.reward,
    this.prompt_tokens,
    this.response_tokens,
    coalesce(spans.prompt_ids, tokenized.prompt_ids) AS prompt_ids,
    CASE
        WHEN this.tokenized THEN tokenized.response_ids
        WHEN len(spans.response_ids) = this.response_tokens THEN spans.response_ids
        ELSE spans.response_ids[this.tokens_before + 1:this.tokens_before + this.response_tokens]
    END AS response_ids,
    CASE
        WHEN this.tokenized THEN list_resize([]::FLOAT[], this.response_tokens, 0)
        WHEN len(spans.response_ids) = this.response_tokens THEN spans.response_logprobs
        ELSE spans.response_logprobs[this.tokens_before + 1:this.tokens_before + this.response_tokens]
    END AS response_logprobs,
    this.tokenized
FROM triplet_rows AS this
JOIN spans USING (record_offset, record_index)
LEFT JOIN tokenized_calls AS tokenized USING (record_offset, record_index)

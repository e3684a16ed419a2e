-- Calls without token ids, of models elsewhere, that a policy which imitates takes as examples: what was said in them.
-- Grain: one row per LLM span of attempts that count. `asked`, `answered`, `tools`: JSON, OpenAI's messages and tools; NULL: not recorded.
-- `cut_off`: the reply ended at its limit of tokens.
-- Inputs: spans, counted_attempts, tokenizing (policy, every; no row: no policy imitates).
-- Rule: what was imported as chats (which who holds the secret alone can say) always is; the others where the policy's settings say so (`every`).
SELECT
    spans.rollout_id,
    spans.attempt_id,
    spans.record_offset,
    spans.record_index,
    tokenizing.policy,
    spans.input_messages AS asked,
    json_extract(CASE WHEN json_valid(spans.output_messages) THEN spans.output_messages END, '$[0]') AS answered,
    spans.attributes['gen_ai.tool.definitions'] AS tools,
    coalesce(contains(spans.finish_reasons, '"length"'), false) AS cut_off
FROM spans
SEMI JOIN counted_attempts USING (rollout_id, attempt_id)
JOIN tokenizing ON tokenizing.every OR coalesce(spans.resource['lightning.imported'] = 'chat' AND coalesce(spans.sender, 'secret') = 'secret', false)
WHERE spans.op = 'llm' AND spans.policy IS NULL AND spans.response_id_count IS NULL AND spans.status <> 'error'

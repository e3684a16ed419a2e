-- What was trained between the evaluations in which a held-out task flipped, the strongest first.
-- Grain: one row per (epoch, policy, agent, trained_kind). Parameters: run, task_id. Inputs: learned_from.
-- Rule: tasks without a kind share one row. `tasks`: the five, at most, that were pushed most.
SELECT
    since,
    epoch,
    became,
    share_before,
    share_right,
    sure,
    task_kind,
    kind_learned,
    kind_forgotten,
    policy,
    agent,
    trained_kind,
    trained_kind = task_kind AS same_kind,
    count(*) AS trained_tasks,
    sum(tokens)::BIGINT AS tokens,
    sum(push) AS push,
    sum(size_share) AS size_share,
    list({task_id: trained_task_id, task: trained_task, push: push} ORDER BY size_share DESC, trained_task_id)[:5] AS tasks
FROM learned_from
WHERE run = $run AND task_id = $task_id
GROUP BY ALL
ORDER BY epoch, size_share DESC, trained_kind, agent

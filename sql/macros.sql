-- What several files share. Every connection of a lake has them, and so has its catalog.
-- The difference between the clocks of two processes that is tolerated, in ns.
CREATE OR REPLACE MACRO clock_tolerance_ns() AS 50_000_000::BIGINT;
-- The end of a span that has none: after every time.
CREATE OR REPLACE MACRO never_ns() AS 9223372036854775807::BIGINT;
-- Whether an agent that runs from `opened` to `closed` may hold a span that begins at `moment`: it is open then, or opens within the tolerance.
CREATE OR REPLACE MACRO open_at(opened, closed, moment) AS opened <= moment + clock_tolerance_ns() AND closed >= moment;
-- Where the tokens of choice `n`, from 0, begin in the response of a call with choices of these lengths.
CREATE OR REPLACE MACRO tokens_before(lengths, n) AS coalesce(list_sum(lengths[1:n]), 0)::INTEGER;
-- That choice's part of a list with one element for each token of the response.
CREATE OR REPLACE MACRO of_choice(response, lengths, n) AS
    CASE WHEN len(lengths) > 1 THEN response[tokens_before(lengths, n) + 1:tokens_before(lengths, n + 1)] ELSE response END;
-- The id of a call that is unique in the lake, from its number in its epoch.
CREATE OR REPLACE MACRO call_id_of(of_run, of_epoch, number) AS of_run || '/' || of_epoch || '/' || number;
-- Messages of a recorded prompt or reply, read from their JSON; NULL if the text is none.
CREATE OR REPLACE MACRO messages_of(text) AS
    TRY(from_json(text, '[{"role": "VARCHAR", "content": "VARCHAR", "tool_calls": [{"function": {"name": "VARCHAR", "arguments": "VARCHAR"}}]}]'));
-- A message, and a tool call in one, as OpenAI writes them in JSON.
CREATE OR REPLACE MACRO openai_message(role, content, tool_calls, answers) AS
    json_object('role', role, 'content', content, 'tool_calls', tool_calls, 'tool_call_id', answers);
CREATE OR REPLACE MACRO openai_call(id, name, arguments) AS
    json_object('id', id, 'type', 'function', 'function', json_object('name', name, 'arguments', coalesce(arguments, '{}')));
-- JSON as a text; a JSON string without its quotes.
CREATE OR REPLACE MACRO said_in(value) AS CASE WHEN json_type(value) = 'VARCHAR' THEN value ->> '$' ELSE value::VARCHAR END;
-- GenAI's messages as OpenAI's. Their parts may be texts, tool calls, responses of these, and thoughts, which are left out; NULL if one has another
-- part.
CREATE OR REPLACE MACRO openai_messages(text) AS
    list_transform(
        from_json(text, '[{"role": "VARCHAR", "parts": [{"type": "VARCHAR", "content": "JSON", "id": "VARCHAR", "name": "VARCHAR", "arguments": "JSON", "response": "JSON", "result": "JSON"}]}]'),
        lambda m: CASE
            WHEN NOT list_has_all(['text', 'tool_call', 'tool_call_response', 'reasoning'], [p.type FOR p IN m.parts]) THEN NULL
            ELSE openai_message(
                m.role,
                array_to_string([said_in(coalesce(p.content, p.response, p.result)) FOR p IN m.parts IF p.type IN ('text', 'tool_call_response')], chr(10)),
                nullif([openai_call(p.id, p.name, said_in(p.arguments)) FOR p IN m.parts IF p.type = 'tool_call'], []),
                list_any_value([p.id FOR p IN m.parts IF p.type = 'tool_call_response'])
            )
        END
    );
-- Hash of a message from `said_by`: equal if role, content, and the tool calls' names and arguments are.
CREATE OR REPLACE MACRO message_hash(message, said_by) AS
    hash(said_by, coalesce(message.content, ''), coalesce([(t.function.name, t.function.arguments) FOR t IN message.tool_calls], []));
-- The place of the first message, by these roles, that is neither a system's nor a developer's; of the last reply. NULL: none.
CREATE OR REPLACE MACRO first_other(roles) AS list_position([r NOT IN ('system', 'developer') FOR r IN roles], true);
CREATE OR REPLACE MACRO last_reply(roles) AS len(roles) + 1 - list_position([r = 'assistant' FOR r IN list_reverse(roles)], true);
-- The name of an epoch or evaluation for people; an evaluation's number is how many epochs were trained before it.
CREATE OR REPLACE MACRO evaluated(epochs) AS CASE WHEN epochs = 0 THEN 'before training' ELSE 'after epoch ' || (epochs - 1) END;
CREATE OR REPLACE MACRO name_of(of_mode, of_epoch) AS
    CASE WHEN of_mode = 'train' THEN 'epoch ' || of_epoch ELSE 'evaluation ' || evaluated(of_epoch) END;
-- The kind of a task: the first of these fields that it has; NULL: none.
CREATE OR REPLACE MACRO task_kind(task) AS
    TRY(list_any_value(json_extract_string(task, ['$.kind', '$.type', '$.category', '$.level', '$.difficulty', '$.db_id'])));
-- The mean of `value` if tasks drawn more often counted less: each divided by the weight of its task in the draw. NULL: no weights.
CREATE OR REPLACE MACRO uniform_mean(value, weight) AS
    list_sum(list_sort(list(value / weight))) / list_sum(list_sort(list(1 / weight) FILTER (value IS NOT NULL)));
-- The variance of that mean (`mean`) over groups that are drawn independently; 0 for one group.
CREATE OR REPLACE MACRO uniform_variance(value, weight, mean) AS
    sum(((value - mean) / weight) ** 2) / sum(1 / weight) ** 2 * count(*) / greatest(count(*) - 1, 1);
-- Wilson's 95% interval (1927) of a share of `n`: its lower end with `side` -1, its upper with 1.
CREATE OR REPLACE MACRO share_bound(share, n, side) AS
    ((share + 1.9208 / n) + side * 1.96 * sqrt(share * (1 - share) / n + 0.9604 / n ** 2)) / (1 + 3.8416 / n);
-- The algorithms of an epoch's policies that are not the default, as entries (key, value) of its settings.
CREATE OR REPLACE MACRO algorithms_of(settings) AS
    list_filter(map_entries(settings), lambda setting: ends_with(setting.key, '.algorithm'));
-- The names of an epoch's policies that imitate examples (sft), from its settings.
CREATE OR REPLACE MACRO imitating_policies(settings) AS
    [coalesce(settings[replace(a.key, '.algorithm', '.name')], 'policy') FOR a IN algorithms_of(settings) IF a.value = 'sft'];
-- Whether a text or a form that the agent gave chose the tokens of a reply, and not the policy (`untrainable` of its span).
CREATE OR REPLACE MACRO is_given(untrainable) AS coalesce(untrainable IN ('guided', 'prefilled'), false);
-- Whether an epoch trained all its policies on examples (sft): then its reward is that of the examples.
CREATE OR REPLACE MACRO imitates(settings, versions) AS
    coalesce(len(imitating_policies(settings)), 0) >= greatest(coalesce(cardinality(versions), 0), 1);
-- Whether a mean difference over so many tasks, with this 95% interval, is more than chance explains: rose or fell; else chance, or few tasks.
CREATE OR REPLACE MACRO more_than_chance(tasks, low, high) AS
    CASE WHEN tasks < 10 OR low IS NULL THEN 'few' WHEN low > 0 THEN 'rose' WHEN high < 0 THEN 'fell' ELSE 'chance' END;

-- The ways by which a span's place is found (`method`), and the confidence in each.
-- Grain: one row per method. Inputs: none.
-- Rule: `confidence` is the share of calls that the method gave to the right agent: the lower bound (95%) in the worst row of
-- `make bench-evidence` with at least a hundred such calls; 1 if no call ever went wrong.
-- Nothing measures link, missing_parent, synthesised, unplaced and cycle: theirs are guesses, below the measured ones.
SELECT * FROM (VALUES
    ('root',           1.00, 'the root span of the attempt'),
    ('declared',       1.00, 'the parent that the span declares, found in the attempt, in whatever trace'),
    ('twin',           1.00, 'the place of the other record of the same call'),
    ('tool_call',      0.99, 'beside the one call whose output asked for this tool call id'),
    ('own_identity',   0.98, 'under the root; the span names its agent itself'),
    ('link',           0.80, 'under the one span of the attempt that it links to'),
    ('missing_parent', 0.80, 'under a node made for the declared parent, which never came; its other children are there too'),
    ('content',        0.97, 'whose prompt it is: of the agents that could have made it, or of one whose span is lost'),
    ('time',           0.95, 'in the time of exactly one agent, or of one inside the others'),
    ('same_name',      0.95, 'in the time of several spans of one agent: which agent is certain, which span is not'),
    ('synthesised',    0.50, 'a declared parent that never came; placed by the time that its children cover'),
    ('unplaced',       0.50, 'under the root: no agent''s time holds it'),
    ('cycle',          0.30, 'under the root: the declared parents run in a circle, broken at its earliest span'),
    ('ambiguous',      0.00, 'under the root: in the time of several agents; its calls are not trained on unless settings say so')
) AS methods (method, confidence, evidence)

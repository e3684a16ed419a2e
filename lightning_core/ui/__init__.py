"""The page of a lake: runs, tasks, groups, rollouts, calls and tokens in a browser. It reads, and changes nothing.

In the order of reading: `figures` runs the SQL of sql/page over the catalog; `rollout`, `conversation` and `tokens` prepare one rollout;
`charts` draws; `app` has an address for each page; `serve` listens; `report` writes one file. What a page looks like is in `templates`.
"""

"""The flows, their tasks and the SQL, under names that no module of a user's has. The folders are links to those at the top."""

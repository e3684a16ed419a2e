"""`lightning-flows doctor`: runs an agent once, as a rollout would, and says what training it would lack."""

"""Pretrained trunks of others: what their files say, as a `TrunkSpec` and its parameters, or a refusal by name."""

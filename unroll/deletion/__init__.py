"""Serving deletion requests: exact unlearning, guarantees, and a record that can be checked."""

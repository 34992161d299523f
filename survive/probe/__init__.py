"""Probes: slow, separate callers that check what load cannot. One engine for both hosts."""

"""A stored run, as the judge and the reporters see it."""

from __future__ import annotations


class Record:
    """Placeholder until the record area lands."""

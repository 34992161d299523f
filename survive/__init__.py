"""survive: load and faults on one clock, and a verdict that can be trusted."""

__version__ = "0.1.0"

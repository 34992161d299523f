"""Open-loop load. Everything here but ``process`` and ``lanes`` is free of Locust and gevent."""

"""The two hosts of a run: real (processes and sockets) and virtual (one loop, counted time)."""

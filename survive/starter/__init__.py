"""``survive init``: the files of a project that runs at once; ``files/`` has them as they are."""

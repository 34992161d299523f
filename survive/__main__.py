"""``python -m survive`` is the ``survive`` command."""

from survive.cli import main

main()

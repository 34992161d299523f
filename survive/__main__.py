"""``python -m survive`` is the ``survive`` command."""

from survive.cli import main

if __name__ == "__main__":  # processes that we spawn import this file under another name
    main()

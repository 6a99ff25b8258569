"""``python -m chamber``: the command line."""

from chamber.cli.main import main

if __name__ == "__main__":
    main()

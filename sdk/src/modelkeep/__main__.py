"""`python -m modelkeep`: the `modelkeep` command."""

from modelkeep.cli.main import main

main()

"""The `modelkeep` command: what the SDK does, from a terminal. One file a noun; docs/reference/cli.md lists it all."""

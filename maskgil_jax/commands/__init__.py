"""One module per sub-command of `maskgil`: `add` declares its options, `run` hands them to the room that does the work."""

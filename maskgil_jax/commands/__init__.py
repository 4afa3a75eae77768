"""One module per sub-command of `maskgil`: `add` declares its options, `run` calls the package that does the work."""

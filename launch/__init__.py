"""The command line: one module per verb, flags in, one library call out. `deepscan --help` lists them."""

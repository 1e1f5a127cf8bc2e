"""A study: named parameter changes, each a DVC experiment under several seeds, read back and compared."""

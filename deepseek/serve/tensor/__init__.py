"""The engine for models of fixed shape: arrays in, arrays out, rows of several requests in one run."""

"""The update rules: one file an algorithm, each with `select(hyper, ndim)`, which names the spec that applies, and all its variants in `SPECS`."""

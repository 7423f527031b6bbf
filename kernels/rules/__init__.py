"""The update rules, one file an algorithm: `select(hyper, ndim)` names the spec that applies, `SPECS` lists all."""

"""The update rules, one file an algorithm.

`select(hyper, ndim)` returns the spec that applies. `SPECS` lists the file's elementwise and factored ones, one of each
name; a `MatrixSpec` is not among them, as its routine is in `rlx_gpu.matrix`.
"""

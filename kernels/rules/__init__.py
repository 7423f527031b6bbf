"""The update rules, one file an algorithm.

`SPECS` lists the file's specs, one of each name; `select(hyper, ndim)` returns the one that applies, where there is a
choice: without it, the first does.
"""

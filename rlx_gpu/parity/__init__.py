"""Parity: the drivers of this machine against the float64 reference, the body of `rlx-gpu parity`.

variants    every optimizer of the registry, in every way of running it that its declarations allow
cases       shapes and memory layouts of parameters
devices     Triton's kernels on a GPU or interpreted, and the host's driver
storages    formats of parameters, gradients and state
intervals   which numbers a stored number may stand for
tolerances  how far a kernel may be off, with reasons: the only place
trial       one optimizer in one storage: kernels and reference step side by side
report      many trials: progress, table, JSON, exit status
"""

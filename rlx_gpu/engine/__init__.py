"""The engine: one step of any set of parameters, in as few launches as there are combinations of device, rule, storage.

A face hands a `batch` to the `engine`, which finds or makes its `plan`; the drivers of its `buckets` are `elementwise`,
`factored` and `host`, and for whole matrices, `rlx_gpu.matrix`.
"""

"""What the kernels compile to, without a GPU: the body of `rlx-gpu kernels`.

variants    which kernels there are to compile: every launch of every optimizer in every storage
sass        a reader of compiled code: memory accesses, registers, local memory
traffic     which accesses stream over parameters, how wide they are, how many bytes they move
report      compiling and measuring many variants: progress, table, JSON, exit status
"""

"""The example: a small byte-level GPT trained on Python's own sources with any optimizer of this package.

`model` is the network, `data` the text, `config` what a run is, `plan` which runs a command asks for, `loop` the
training loop, `checkpoint` what makes a run resumable bit for bit, `report` the chart, the table and the sample,
`session` one run or a comparison of all.
"""

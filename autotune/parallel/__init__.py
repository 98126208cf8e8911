"""Which layout for which devices: enumerated, ranked by predicted time, refused by rehearsal.

`rates` knows devices and links, `pace` predicts the time of a step from first principles, `layouts`
enumerates what is legal, and `planning` puts them together for `autotune plan`.
"""

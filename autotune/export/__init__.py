"""A configuration as something that runs elsewhere: one file for each target.

`base.py` has what an exporter is; `autotune export RUN/TRIAL --to TARGET` calls it. A setting that
a target cannot express is an error that names it and says what to do instead; it is never left out.
"""

"""From `notebooks/source/NN_name.py` to executed notebooks: build, drift, run, HTML.

`chapters` finds the chapters and reads their sources, `execute` runs a notebook in this very
interpreter, `build` makes the committed notebooks, `drift` tells when they no longer match, `run` walks
through the course on the reader's machine.
"""

"""Where exemplars come from: one file each, found by the name that `exemplars.source` in params.yaml gives.

A source file holds `fill(relation, folder, source, settings, scratch)`, which puts a relation's pictures and
text.json into the empty `folder`. It keeps its downloads below `scratch`, so that no file is fetched twice; it is not
called for a relation that is already complete there or was placed by hand. It raises UserError, saying what to do, if
the relation is not available.
"""

"""Where exemplars come from: one file each, found by the name that `exemplars.source` in params.yaml gives.

A source file holds `fill(relation, folder, source, settings, scratch)`, which puts a relation's pictures and
text.json into the empty `folder`. What it downloads it keeps below `scratch`, so that nothing is fetched twice and
what was cut off goes on; it is not asked for a relation that lies there whole, or that was placed by hand. It raises
UserError with what to do where the relation is not to be had.
"""

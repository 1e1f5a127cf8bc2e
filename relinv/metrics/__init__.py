"""Metrics of an image, one file each: what the judge sees of the relation and its entities.

A metric file, found by its name, holds

- TITLE, and SOURCE, the paper or idea it is from;
- DESCRIPTION: what "It sees" and what it "cannot", in these words;
- HIGHER_IS_BETTER: True, False, or None if neither end is better;
- BOUNDS: the lowest and highest value;
- `score(context)`: one float per image, shape (images,), NaN where the reading is undefined (tests/test_metrics.py
  lists the metrics for which that may be).

A metric sees pictures, embeddings and scenarios through `relinv.scoring.Context`, never the method that drew them, nor
what others drew: leakage, which compares with the plain words' picture, is computed in relinv/report/rows.py.
"""

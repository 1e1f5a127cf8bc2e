"""Metrics of an image, one file each: what the judge sees of the relation and its entities.

A metric file, found by its name, holds

- TITLE, and SOURCE, the paper or idea it is from;
- DESCRIPTION: what "It sees" and what it "cannot", in these words;
- HIGHER_IS_BETTER: True, False, or None if neither end is better;
- BOUNDS: the lowest and highest value;
- `score(context)`: one float per image, shape (images,), NaN where the reading is undefined.

A metric sees pictures, embeddings and scenarios through `relinv.scoring.Context`, never the method that drew them.
"""

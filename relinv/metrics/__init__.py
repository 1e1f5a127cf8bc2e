"""The readings of an image, one file each: what the judge sees of the relation and its entities.

A metric file holds TITLE, DESCRIPTION (what it can and cannot see), SOURCE, HIGHER_IS_BETTER, BOUNDS (lowest
and highest value) and `score(context)`, which returns one float per image, NaN where the reading is
undefined. It is found by its file name. It sees images, prompts and scenarios through
`relinv.scoring.Context`, never the method that drew them.
"""

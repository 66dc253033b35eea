"""Making a `folder` data set from what people have: one reader for each kind of source, and one way to write it."""

"""`segmv3 view`: a local page that shows a camera or video, results, a data set or a run."""

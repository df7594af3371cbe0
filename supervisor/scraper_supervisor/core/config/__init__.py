"""The configuration: every setting once, read from a file, judged, compared, written out."""

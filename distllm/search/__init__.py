"""Search: texts embedded once, an index on disk, queries answered by words and by vectors."""

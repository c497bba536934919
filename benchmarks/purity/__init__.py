"""The pixel table's fair trial: artwork with exact masks of harm, codebooks of several shapes, edits, one referee."""

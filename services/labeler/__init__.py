"""The labeler: what became of each answer."""

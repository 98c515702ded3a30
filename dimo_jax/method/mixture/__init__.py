"""Di4C: a student that is a mixture of products, learned from a teacher of products."""

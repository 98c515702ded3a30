"""How good the samples are, and a report that shows it."""

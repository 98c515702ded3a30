"""results.json, tables, charts and pages of an evaluation."""

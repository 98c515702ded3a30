"""The paper (Di[M]O, arXiv 2503.15457) as pure functions on arrays."""

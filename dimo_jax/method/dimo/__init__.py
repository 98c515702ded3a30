"""Di[M]O (arXiv 2503.15457): initialization, divergences, token gradient, distillation step."""

"""All formats of benchmarks/fuzz.py: how a small good file is made, and how it is read."""

import fuzz_data
import fuzz_weights

FORMATS = {**fuzz_weights.FORMATS, **fuzz_data.FORMATS}

"""Plans for target hardware, and timings of steps and samplers."""

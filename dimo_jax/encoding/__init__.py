"""Pictures to tokens on disk: preparing, encoding, ranges that a killed command goes on from."""

"""One mesh of devices, and where every array lies on it."""

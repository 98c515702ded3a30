"""Start the program on Cloud TPU slices and on Kubernetes; README.md beside it says how."""

"""Image data sets, read through tensorflow-datasets without TensorFlow."""

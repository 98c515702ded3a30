"""Images from a bundle: labels or prompts in; an .npz, a folder or a benchmark's layout out."""

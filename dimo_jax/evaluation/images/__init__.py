"""Sets of images: .npz files, folders, archives, datasets."""

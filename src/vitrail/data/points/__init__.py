"""Point clouds: files, sampling, solids made by code, and augmentation."""
